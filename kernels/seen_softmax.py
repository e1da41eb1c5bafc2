"""Softmax of attention scores over the keys that a query sees, in place.

A mask is added, or filled in, in a pass of its own, and its exponentials are computed like any other. Where a
query sees two ranges of keys - what comes before it in a sample, or a prompt and its own branch - a loop over
these ranges does neither.

Shapes: K groups of heads, N queries, G heads of a group, S keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class SeenKeys:
    """Which of `num_keys` keys each query sees: the first `first_N`, and from `begin_N` up to `end_N`.

    int32 tensors (N,) on the CPU, `first_N <= begin_N < end_N <= num_keys`: the last key that a query sees
    is one of the second range. device: where scores are.
    """

    first_N: Tensor
    begin_N: Tensor
    end_N: Tensor
    num_keys: int
    device: torch.device

    @classmethod
    def causal(
        cls, first_end: int, num_queries: int, at_least: int, num_keys: int, device: torch.device
    ) -> SeenKeys:
        """Query n sees the first `first_end + n` keys, and `at_least` so many."""
        end_N = torch.arange(first_end, first_end + num_queries, dtype=torch.int32).clamp_(min=at_least)
        return cls(torch.zeros_like(end_N), torch.zeros_like(end_N), end_N, num_keys, device)

    @cached_property
    def hidden_NS(self) -> Tensor:
        """True at keys that are not seen."""
        key_S = torch.arange(self.num_keys, dtype=torch.int32)
        is_first_NS = key_S < self.first_N[:, None]
        hidden_NS = ~(is_first_NS | (key_S >= self.begin_N[:, None]) & (key_S < self.end_N[:, None]))
        return hidden_NS.to(self.device)


def softmax_where_seen_(scores_KNGS: Tensor, seen: SeenKeys) -> Tensor:
    """Scores become shares, 0 where a key is not seen; not for autograd, which would not know of it.

    What comes back is the given tensor where the loop does it (bfloat16 on a CPU), else another one; the
    given one is overwritten in any case.
    """
    if scores_KNGS.device.type == "cpu" and scores_KNGS.dtype == torch.bfloat16:
        from recloom.kernels.seen_softmax_cpu import softmax_on_cpu

        return softmax_on_cpu(scores_KNGS, seen)
    return scores_KNGS.masked_fill_(seen.hidden_NS[:, None], -torch.inf).softmax(dim=3)
