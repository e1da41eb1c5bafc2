"""Cross-entropy of logits whose vocabulary is divided among tensor-parallel ranks (Megatron-LM, section 3).

The logits are never gathered: ranks exchange a maximum, a sum and the target's logit of each row, three
numbers instead of V. Without a division all is torch's own.

Shapes: A rows, V words of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy


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
    if shard is None:
        return cross_entropy(logits_AV.float(), target_A, reduction="sum")
    logits_AV = logits_AV.float()
    return (log_normaliser(logits_AV, shard) - target_logits(logits_AV, target_A, shard)).sum()


def log_normaliser(logits_AV: Tensor, shard: VocabularyShard) -> Tensor:
    """log sum exp over all words (A,), of float32 logits."""
    found: Tensor = LogNormaliser.apply(logits_AV, shard)
    return found


def target_logits(logits_AV: Tensor, target_A: Tensor, shard: VocabularyShard) -> Tensor:
    """The logit of each row's target (A,), whichever rank has it; 0 for a target that no rank has."""
    local_A = target_A - shard.start
    is_here_A = (local_A >= 0) & (local_A < logits_AV.shape[1])
    picked_A = logits_AV.gather(1, local_A.clamp(0, logits_AV.shape[1] - 1)[:, None])[:, 0]
    total_A: Tensor = SumOfRanks.apply(picked_A.where(is_here_A, 0.0), shard.group)
    return total_A


class SumOfRanks(torch.autograd.Function):
    """What all ranks of a group add up; the loss behind it is the same on each, so gradients pass as they
    are."""

    @staticmethod
    def forward(ctx: Any, value_A: Tensor, group: Any) -> Tensor:
        total_A = value_A.clone()
        dist.all_reduce(total_A, group=group)
        return total_A

    @staticmethod
    def backward(ctx: Any, grad_A: Tensor) -> tuple[Tensor, None]:
        return grad_A, None


class LogNormaliser(torch.autograd.Function):
    """The gradient of a word's logit is its probability."""

    @staticmethod
    def forward(ctx: Any, logits_AV: Tensor, shard: VocabularyShard) -> Tensor:
        largest_A = logits_AV.amax(1)
        dist.all_reduce(largest_A, op=dist.ReduceOp.MAX, group=shard.group)
        sum_A = (logits_AV - largest_A[:, None]).exp().sum(1)
        dist.all_reduce(sum_A, group=shard.group)
        log_sum_A = sum_A.log() + largest_A
        ctx.save_for_backward(logits_AV, log_sum_A)
        return log_sum_A

    @staticmethod
    def backward(ctx: Any, grad_A: Tensor) -> tuple[Tensor, None]:
        logits_AV, log_sum_A = ctx.saved_tensors
        return (logits_AV - log_sum_A[:, None]).exp() * grad_A[:, None], None
