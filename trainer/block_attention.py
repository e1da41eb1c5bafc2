"""Attention of a row's samples by plain matrix products, a block of queries at a time.

On a CPU with bfloat16 this beats torch's fused attention (`benchmarks/kernels.csv`). Blocks keep what a
causal mask throws away small, and heads that share keys are multiplied together, so that keys are never
repeated. The backward pass is written out: it adds into one gradient of the row, where autograd would pad and
add one a block.

Shapes: B = 1 row, H heads of queries, K heads of keys and values (H a multiple of K), G = H / K, T tokens of
the row, N tokens of a block, S keys that a block sees, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from recloom.kernels.seen_softmax import SeenKeys, softmax_where_seen_

Ranges: TypeAlias = tuple[tuple[int, int], ...]  # of tokens, the ends not included
BLOCK = 128
LONGEST = 1024  # the backward pass keeps all probabilities; beyond this the fused attention costs less


class Sample(NamedTuple):
    """The tokens `start:end` of a row, which see the first `prefix` of them and all up to themselves.

    before: ranges of tokens elsewhere in the row that all of them see besides: its beginning, computed once
    for several samples.
    """

    start: int
    end: int
    prefix: int = 0
    before: Ranges = ()

    @property
    def num_seen(self) -> int:
        """Tokens that its last one sees."""
        return self.end - self.start + sum(end - start for start, end in self.before)


class Block(NamedTuple):
    """The queries `start:end`, which see the keys of `before` and `first:seen`, those from `hidden` on
    causally."""

    start: int
    end: int
    first: int
    seen: int
    hidden: int
    before: Ranges

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """All keys that are seen."""
        return [*self.before, (self.first, self.seen)]


def pays(query_BHTD: Tensor, samples: Sequence[Sample], dropout: float) -> bool:
    """Whether `block_attention` beats torch's fused attention here."""
    is_slow = query_BHTD.device.type == "cpu" and query_BHTD.dtype == torch.bfloat16
    return is_slow and dropout == 0 and all(sample.num_seen <= LONGEST for sample in samples)


def samples_of(
    boundaries: Sequence[int],
    prefixes: Sequence[int] | None = None,
    before: Sequence[Ranges] | None = None,
) -> list[Sample]:
    """The samples between ascending token offsets, causal where `prefixes` says nothing."""
    starts, ends = boundaries[:-1], boundaries[1:]
    columns = (starts, ends, prefixes or [0] * len(starts), before or [()] * len(starts))
    return [Sample(*of) for of in zip(*columns, strict=True)]


def blocks_of(samples: Sequence[Sample]) -> Iterator[Block]:
    """Blocks of about equal size in each sample, in the order of the row."""
    for start, end, prefix, before in samples:
        length = end - start
        count = -(-length // BLOCK)
        for number in range(count):
            first, last = (start + length * n // count for n in (number, number + 1))
            all_see = start + prefix
            yield Block(first, last, start, max(last, all_see), max(first, all_see), before)


def block_attention(
    query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, samples: Sequence[Sample], scaling: float | None
) -> Tensor:
    """Attention (B, T, H, D) inside the samples, which together are the row."""
    scale = 1 / math.sqrt(query_BHTD.shape[3]) if scaling is None else scaling
    out: Tensor = BlockAttention.apply(query_BHTD, key_BKTD, value_BKTD, list(blocks_of(samples)), scale)
    return out


class BlockAttention(torch.autograd.Function):
    """Inside, queries are (K, T, G, D): those of a block and a head of keys follow each other in memory."""

    @staticmethod
    def forward(
        ctx: Any, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, blocks: list[Block], scale: float
    ) -> Tensor:
        heads, length, width = query_BHTD.shape[1:]
        groups = key_BKTD.shape[1]
        query_KTGD = query_BHTD.new_empty(groups, length, heads // groups, width)
        torch.mul(query_BHTD[0].view(groups, -1, length, width).transpose(1, 2), scale, out=query_KTGD)
        key_KTD, value_KTD = key_BKTD[0].contiguous(), value_BKTD[0].contiguous()
        out_BTHD = query_BHTD.new_empty(1, length, heads, width)
        out_KTGD = out_BTHD.view(length, groups, -1, width).transpose(0, 1)
        shares = []
        for block in blocks:
            scores_KNS = torch.bmm(rows(query_KTGD, block), seen(key_KTD, block).transpose(1, 2))
            shares.append(shares_of(scores_KNS, block))
            put(out_KTGD, block, torch.bmm(shares[-1], seen(value_KTD, block)))
        ctx.save_for_backward(query_KTGD, key_KTD, value_KTD, *shares)
        ctx.blocks, ctx.scale = blocks, scale
        return out_BTHD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BTHD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query_KTGD, key_KTD, value_KTD, *shares = ctx.saved_tensors
        groups, length, _, width = query_KTGD.shape
        grad_KTGD = grad_BTHD.reshape(length, groups, -1, width).transpose(0, 1).contiguous()
        to_query_BTHD = torch.empty_like(grad_BTHD, memory_format=torch.contiguous_format)
        to_query_KTGD = to_query_BTHD.view(length, groups, -1, width).transpose(0, 1)
        to_key_KTD, to_value_KTD = torch.zeros_like(key_KTD), torch.zeros_like(value_KTD)
        for block, shares_KNS in zip(ctx.blocks, shares, strict=True):
            grad, query = rows(grad_KTGD, block), rows(query_KTGD, block)
            add_to_seen(to_value_KTD, block, shares_KNS.transpose(1, 2), grad)
            to_shares_KNS = torch.bmm(grad, seen(value_KTD, block).transpose(1, 2))
            to_scores_KNS = torch.ops.aten._softmax_backward_data(
                to_shares_KNS, shares_KNS, -1, shares_KNS.dtype
            )
            add_to_seen(to_key_KTD, block, to_scores_KNS.transpose(1, 2), query)
            put(to_query_KTGD, block, torch.bmm(to_scores_KNS, seen(key_KTD, block)).mul_(ctx.scale))
        return to_query_BTHD.transpose(1, 2), to_key_KTD[None], to_value_KTD[None], None, None


def rows(all_KTGD: Tensor, block: Block) -> Tensor:
    """A block's rows (K, N * G, D), token by token."""
    return all_KTGD[:, block.start : block.end].view(len(all_KTGD), -1, all_KTGD.shape[3])


def put(into_KTGD: Tensor, block: Block, rows_KND: Tensor) -> None:
    into = into_KTGD[:, block.start : block.end]
    into.copy_(rows_KND.view(into.shape))


def seen(all_KTD: Tensor, block: Block) -> Tensor:
    """The keys or values (K, S, D) that a block sees; a copy only where they lie apart."""
    parts = [all_KTD[:, start:end] for start, end in block.ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def add_to_seen(into_KTD: Tensor, block: Block, left_KSN: Tensor, right_KND: Tensor) -> None:
    """Add the product to what a block sees."""
    done = 0
    for start, end in block.ranges:
        into_KTD[:, start:end].baddbmm_(left_KSN[:, done : done + end - start], right_KND)
        done += end - start


def shares_of(scores_KNS: Tensor, block: Block) -> Tensor:
    """The softmax over the keys that come no later than the query; the scores are overwritten."""
    length, num_keys = block.end - block.start, scores_KNS.shape[2]
    moved = num_keys - block.seen  # a key's column is its place in the row and this
    keys = causal(block.start + 1 + moved, length, block.hidden + moved, num_keys, scores_KNS.device)
    scores_KNGS = scores_KNS.view(len(scores_KNS), length, -1, num_keys)
    return softmax_where_seen_(scores_KNGS, keys).view(scores_KNS.shape)


causal = lru_cache(maxsize=256)(SeenKeys.causal)  # all layers ask for the same
