"""Cross-entropy without a float32 copy of all logits, on one rank or with a divided vocabulary.

Where tensor-parallel ranks share the words (Megatron-LM, section 3), logits are never gathered: they exchange
a maximum, a sum and the target's logit of each row, three numbers instead of V.

Shapes: A rows, N of them at a time, V words of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

AT_ONCE = 2**20  # logits that are float32 at a time


@dataclass(frozen=True)
class VocabularyShard:
    """This rank's words are `start`, `start + 1`, ...; `group` holds all of them."""

    start: int
    group: Any


def shard_of(head: Any) -> VocabularyShard | None:
    """The words of an output layer; None where it has all."""
    if not getattr(head, "is_vocab_parallel_lm_head", False):
        return None
    return VocabularyShard(head.vocab_start_index, head.mp_group)


def summed_cross_entropy(logits_AV: Tensor, target_A: Tensor, shard: VocabularyShard | None) -> Tensor:
    """Summed over rows, float32 scalar, the same on all ranks of the group."""
    normaliser_A, chosen_A = normaliser_and_target(logits_AV, target_A, shard)
    return (normaliser_A - chosen_A).sum()


def normaliser_and_target(
    logits_AV: Tensor, target_A: Tensor, shard: VocabularyShard | None
) -> tuple[Tensor, Tensor]:
    """log sum exp over all words, and the logit of each row's target, whichever rank has it: (A,) float32
    each. The logit of a target that no rank has is 0."""
    found: tuple[Tensor, Tensor] = NormaliserAndTarget.apply(logits_AV, target_A, shard)
    return found


def normaliser(logits_AV: Tensor) -> Tensor:
    """log sum exp over the words that are here, (A,) float32, few rows at a time."""
    return torch.cat([logits_AV[few].float().logsumexp(1) for few in parts(logits_AV)])


class NormaliserAndTarget(torch.autograd.Function):
    """The gradient of a word's logit is its probability, and one more at the target.

    Both passes take few rows at a time to float32: of A x V there are only the logits and their gradient,
    in the dtype of the model.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_AV: Tensor, target_A: Tensor, shard: VocabularyShard | None
    ) -> tuple[Tensor, Tensor]:
        normaliser_A = normaliser(logits_AV)
        local_A = target_A - (shard.start if shard else 0)
        is_here_A = (local_A >= 0) & (local_A < logits_AV.shape[1])
        local_A = local_A.where(is_here_A, 0)
        chosen_A = logits_AV.gather(1, local_A[:, None])[:, 0].float().where(is_here_A, 0.0)
        if shard:
            normaliser_A = over_ranks(normaliser_A, shard.group)
            dist.all_reduce(chosen_A, group=shard.group)
        ctx.save_for_backward(logits_AV, normaliser_A, local_A, is_here_A)
        return normaliser_A, chosen_A

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_normaliser_A: Tensor, to_chosen_A: Tensor) -> tuple[Tensor, None, None]:
        logits_AV, normaliser_A, local_A, is_here_A = ctx.saved_tensors
        to_logits_AV = torch.empty_like(logits_AV)
        to_own_A = to_chosen_A.where(is_here_A, 0.0)
        for few in parts(logits_AV):
            to_few_NV = (logits_AV[few].float() - normaliser_A[few, None]).exp_()
            to_few_NV.mul_(to_normaliser_A[few, None])
            to_few_NV.scatter_add_(1, local_A[few, None], to_own_A[few, None])
            to_logits_AV[few] = to_few_NV
        return to_logits_AV, None, None


def parts(logits_AV: Tensor) -> Iterator[slice]:
    """Rows in turn, so many that their float32 copy stays small; of no rows one empty part."""
    count = max(1, AT_ONCE // logits_AV.shape[1])
    return (slice(first, first + count) for first in range(0, max(1, len(logits_AV)), count))


def over_ranks(normaliser_A: Tensor, group: Any) -> Tensor:
    """log sum exp of what the ranks have (A,)."""
    largest_A = normaliser_A.clone()
    dist.all_reduce(largest_A, op=dist.ReduceOp.MAX, group=group)
    sum_A = (normaliser_A - largest_A).exp()
    dist.all_reduce(sum_A, group=group)
    return sum_A.log() + largest_A
