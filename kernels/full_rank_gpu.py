"""Ranking on a GPU: the best score of each tile of items, then a second look at the best tiles.

The first two kernels multiply tiles of users and items for the targets' scores, the counts against them and
each tile's best score; the third scores the items of a user's best tiles again. What is sorted is packed into
words of 64 bits: the score's bits made comparable above, the id below, so that equal scores stay in order.

Shape legend:
    N users, B users of a block, I items, T items of a tile, G tiles, C chosen tiles, D width
    K places of the list, S shares of the catalogue, P items seen by all users together
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from recloom.kernels.catalog_softmax_gpu import (
    PROGRAMS_PER_PROCESSOR,
    dot_dtype,
    dot_precision,
    load_rows,
    load_scales,
)

CANDIDATE_BYTES = 1 << 28
LOW_BITS = tl.constexpr(0xFFFFFFFF)
NOT_SIGN = tl.constexpr(0x7FFFFFFF)

Lists = tuple[Tensor, Tensor, Tensor | None]


def rank_on_gpu(
    queries_ND: Tensor,
    items_ID: Tensor,
    norms_I: Tensor,
    k: int,
    seen: tuple[Tensor, Tensor, Tensor],
    targets_N: Tensor | None,
    cosine: bool,
) -> list[Lists]:
    """The k best tiles by their best score hold the k best items: only these are scored a second time."""
    constants = constants_of(items_ID, cosine)
    tile = constants["BLOCK"]
    chosen = min(k, triton.cdiv(len(items_ID), tile))
    block = max(1, CANDIDATE_BYTES // (8 * max(chosen * tile, triton.cdiv(len(items_ID), tile))))
    factors_ND = queries_ND.to(dot_dtype(items_ID)).contiguous()
    parts = []
    for start in range(0, len(factors_ND), block):
        users = slice(start, start + block)
        targets_B = None if targets_N is None else targets_N[users]
        part = SeenBlock(*seen, start, len(items_ID))
        parts.append(rank_block(factors_ND[users], items_ID, norms_I, k, part, targets_B, constants))
    return parts


class SeenBlock(NamedTuple):
    """The seen items of a block of users, the first of which is `start`."""

    offsets_N1: Tensor
    items_P: Tensor
    keys_P: Tensor
    start: int
    items: int

    def places(self, ids_BX: Tensor) -> Tensor:
        """Where in items_P the first item >= id of each user stands."""
        rows_B = torch.arange(self.start, self.start + len(ids_BX), device=ids_BX.device)
        keys_BX = rows_B[:, None] * self.items + ids_BX.clamp_max(self.items)
        return torch.searchsorted(self.keys_P, keys_BX)


def constants_of(items_ID: Tensor, cosine: bool) -> dict[str, Any]:
    wide = items_ID.shape[1] > 128
    small = dot_dtype(items_ID) == torch.float32
    return {
        "COSINE": cosine,
        "WIDTH": items_ID.shape[1],
        # What fits the shared memory of sm_80 and sm_90.
        "BLOCK": 32 if wide and small else 64 if wide or small else 128,
        "BLOCK_D": max(16, triton.next_power_of_2(items_ID.shape[1])),
    }


def rank_block(
    factors_BD: Tensor,
    items_ID: Tensor,
    norms_I: Tensor,
    k: int,
    seen: SeenBlock,
    targets_B: Tensor | None,
    constants: dict[str, Any],
) -> Lists:
    best_BG, ranks_B = sweep_block(factors_BD, items_ID, norms_I, seen, targets_B, constants)
    items, tile = len(items_ID), constants["BLOCK"]
    chosen = min(k, best_BG.shape[1])
    tiles_BC = LOW_BITS.value - (best_BG.topk(chosen, sorted=False).values & LOW_BITS.value)
    first_BC, last_BC = (seen.places((tiles_BC + step) * tile) for step in (0, 1))
    candidates_BCT = torch.empty(*tiles_BC.shape, tile, dtype=torch.int64, device=items_ID.device)
    candidates_kernel[tuple(tiles_BC.shape)](
        factors_BD, items_ID, norms_I, tiles_BC, first_BC, last_BC, seen.items_P, candidates_BCT,
        items, chosen, **constants,
    )  # fmt: skip
    packed_BK = candidates_BCT.flatten(1).topk(min(k, chosen * tile)).values
    ordered_BK = (packed_BK >> 32).to(torch.int32)
    scores_BK = (ordered_BK ^ ((ordered_BK >> 31) & NOT_SIGN.value)).view(torch.float32)
    items_BK = LOW_BITS.value - (packed_BK & LOW_BITS.value)
    return items_BK.masked_fill(scores_BK == -math.inf, -1), scores_BK, ranks_B


def sweep_block(
    factors_BD: Tensor,
    items_ID: Tensor,
    norms_I: Tensor,
    seen: SeenBlock,
    targets_B: Tensor | None,
    constants: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Best score of each tile, packed with its number; ranks of the targets."""
    users, items, tile = len(factors_BD), len(items_ID), constants["BLOCK"]
    device, dots = items_ID.device, constants | {"PRECISION": dot_precision()}
    blocks, tiles = triton.cdiv(users, tile), triton.cdiv(items, tile)
    processors = torch.cuda.get_device_properties(device).multi_processor_count if items_ID.is_cuda else 1
    share = tile * triton.cdiv(tiles, triton.cdiv(PROGRAMS_PER_PROCESSOR * processors, blocks))
    firsts_S = torch.arange(0, items, share, device=device)
    places_SB = seen.places(firsts_S.expand(users, -1)).T.contiguous()
    ends_B = seen.offsets_N1[seen.start + 1 :]
    best_BG = torch.empty(users, tiles, dtype=torch.int64, device=device)
    counts_SB = torch.zeros(len(firsts_S), users, dtype=torch.int32, device=device)
    bar_B = norms_I.new_empty(users)
    if targets_B is not None:
        target_kernel[(blocks,)](
            factors_BD, items_ID, norms_I, targets_B, bar_B, users, items, num_warps=8, **dots
        )
    sweep_kernel[(blocks, len(firsts_S))](
        factors_BD, items_ID, norms_I, targets_B, bar_B, places_SB, ends_B, seen.items_P,
        best_BG, counts_SB, users, items, share, tiles, TARGETS=targets_B is not None, num_warps=8, **dots,
    )  # fmt: skip
    if targets_B is None:
        return best_BG, None
    first_B1, last_B1 = (seen.places(targets_B[:, None] + step) for step in (0, 1))
    return best_BG, counts_SB.sum(0).masked_fill((first_B1 < last_B1)[:, 0], items)


@triton.jit
def packed(scores, ids):
    """int64 that orders by score, then by falling id; + 0 turns -0 into 0."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & NOT_SIGN)
    return (ordered.to(tl.int64) << 32) | (LOW_BITS - ids.to(tl.int64))


@triton.jit
def target_kernel(
    queries_ND, items_ID, norms_I, targets_N, bar_N, n_users, n_items,
    COSINE: tl.constexpr, PRECISION: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scores of the targets, by a product of the sweep's shape: so they are its bits."""
    users = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    queries = load_rows(queries_ND, users, n_users, WIDTH, BLOCK_D)
    targets = tl.load(targets_N + users, mask=users < n_users, other=0)
    tile = load_rows(items_ID, targets, n_items, WIDTH, BLOCK_D).to(queries.dtype)
    scales = load_scales(norms_I, targets, n_items, COSINE)
    scores = tl.dot(queries, tl.trans(tile), input_precision=PRECISION) * scales[None, :]
    own = tl.arange(0, BLOCK)[:, None] == tl.arange(0, BLOCK)[None, :]
    tl.store(bar_N + users, tl.sum(tl.where(own, scores, 0.0), 1), mask=users < n_users)


@triton.jit
def sweep_kernel(
    queries_ND, items_ID, norms_I, targets_N, bar_N, places_SN, ends_N, seen_P, best_NG, counts_SN,
    n_users, n_items, share, n_tiles,
    COSINE: tl.constexpr, TARGETS: tl.constexpr, PRECISION: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A block of users against a share of the catalogue: best score of each tile, count against the bar."""
    users = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = users < n_users
    queries = load_rows(queries_ND, users, n_users, WIDTH, BLOCK_D)
    slots = tl.program_id(1) * n_users + users
    places = tl.load(places_SN + slots, mask=inside, other=0)
    ends = tl.load(ends_N + users, mask=inside, other=0)
    following = tl.load(seen_P + places, mask=places < ends, other=n_items)
    counts = tl.zeros([BLOCK], tl.int32)
    if TARGETS:
        bar = tl.load(bar_N + users, mask=inside, other=float("inf"))
        targets = tl.load(targets_N + users, mask=inside, other=-1)
    first = tl.program_id(1) * share
    for start in range(first, tl.minimum(first + share, n_items), BLOCK):
        items = start + tl.arange(0, BLOCK)
        tile = load_rows(items_ID, items, n_items, WIDTH, BLOCK_D).to(queries.dtype)
        scales = load_scales(norms_I, items, n_items, COSINE)
        scores = tl.dot(queries, tl.trans(tile), input_precision=PRECISION) * scales[None, :]
        scores = tl.where((items < n_items)[None, :], scores, float("-inf"))
        stop = tl.minimum(start + BLOCK, n_items)
        while tl.min(following) < stop:
            scores = tl.where(items[None, :] == following[:, None], float("-inf"), scores)
            places += (following < stop).to(tl.int64)
            following = tl.load(seen_P + places, mask=places < ends, other=n_items)
        if TARGETS:
            ahead = (scores >= bar[:, None]) & (items[None, :] != targets[:, None])
            counts += tl.sum(ahead.to(tl.int32), 1)
        tile_ids = tl.zeros([BLOCK], tl.int32) + start // BLOCK
        best = packed(tl.max(scores, 1), tile_ids)
        tl.store(best_NG + users.to(tl.int64) * n_tiles + start // BLOCK, best, mask=inside)
    if TARGETS:
        tl.store(counts_SN + slots, counts, mask=inside)


@triton.jit
def candidates_kernel(
    queries_ND, items_ID, norms_I, tiles_NC, first_NC, last_NC, seen_P, candidates_NCT, n_items, n_chosen,
    COSINE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scores of one user in one of the user's chosen tiles, packed with the ids."""
    slot = tl.program_id(0).to(tl.int64) * n_chosen + tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    items = tl.load(tiles_NC + slot) * BLOCK + columns
    dims = tl.arange(0, BLOCK_D)
    query = tl.load(queries_ND + tl.program_id(0).to(tl.int64) * WIDTH + dims, mask=dims < WIDTH, other=0.0)
    tile = load_rows(items_ID, items, n_items, WIDTH, BLOCK_D).to(tl.float32)
    scales = load_scales(norms_I, items, n_items, COSINE)
    scores = tl.sum(tile * query[None, :].to(tl.float32), 1) * scales
    scores = tl.where(items < n_items, scores, float("-inf"))
    for place in range(tl.load(first_NC + slot), tl.load(last_NC + slot)):
        scores = tl.where(items == tl.load(seen_P + place), float("-inf"), scores)
    tl.store(candidates_NCT + slot * BLOCK + columns, packed(scores, items))
