"""Ranking on a CPU: a product of torch a tile of items, then one sweep of numba over it.

Shape legend:
    N users, B users of a block, I items, T items of a tile, D width, K places of the list
    P items seen by all users together
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from recloom.kernels.catalog_softmax import keys_of, product
from recloom.kernels.numba_threads import as_many_threads_as_torch

USER_BLOCK = 512
TILE = 512
SCAN = 64

Lists = tuple[Tensor, Tensor, Tensor | None]


def rank_on_cpu(
    queries_ND: Tensor,
    items_ID: Tensor,
    norms_I: Tensor,
    k: int,
    seen: tuple[Tensor, Tensor, Tensor],
    targets_N: Tensor | None,
    cosine: bool,
) -> list[Lists]:
    """Items, scores and targets' ranks of each block of users."""
    offsets_N1, items_P, _ = seen
    parts = []
    with as_many_threads_as_torch():
        for start in range(0, len(queries_ND), USER_BLOCK):
            block = slice(start, start + USER_BLOCK)
            targets_B = None if targets_N is None else targets_N[block]
            bounds_B1 = offsets_N1[start : start + len(queries_ND[block]) + 1]
            part = Block(queries_ND[block], items_ID, norms_I, cosine, targets_B, bounds_B1, items_P)
            parts.append(part.rank(k))
    return parts


class Block:
    """A block of users and its tiles. All products have one shape, so an item scores alike in each."""

    def __init__(
        self,
        queries_BD: Tensor,
        items_ID: Tensor,
        norms_I: Tensor,
        cosine: bool,
        targets_B: Tensor | None,
        bounds_B1: Tensor,
        seen_P: Tensor,
    ) -> None:
        self.queries_BD, self.items_ID, self.norms_I, self.cosine = queries_BD, items_ID, norms_I, cosine
        self.targets_B, self.bounds_B1, self.seen_P = targets_B, bounds_B1, seen_P
        self.tile = min(TILE, len(items_ID))
        self.scratch = queries_BD.new_empty(len(queries_BD) * self.tile)

    def scores_BT(self, items: slice | Tensor) -> Tensor:
        keys_TD = keys_of(self.items_ID[items], self.norms_I[items], self.cosine)
        return product(self.queries_BD, keys_TD, self.scratch)

    def rank(self, k: int) -> Lists:
        if self.targets_B is None:
            return self.swept(k, torch.full_like(self.queries_BD[:, 0], math.inf))[0]
        bar_B = self.target_scores_B()
        (items_BK, scores_BK, ranks_B), found_B = self.swept(k, bar_B)
        seen_B = found_B == -math.inf
        if not torch.equal(found_B[~seen_B], bar_B[~seen_B]):
            # The product rounded by column after all: count against what the target scored in its tile.
            (items_BK, scores_BK, ranks_B), _ = self.swept(k, found_B)
        assert ranks_B is not None
        return items_BK, scores_BK, ranks_B.masked_fill(seen_B, len(self.items_ID))

    def target_scores_B(self) -> Tensor:
        """What the targets are expected to score in their tiles."""
        assert self.targets_B is not None
        bar_B = torch.empty_like(self.queries_BD[:, 0])
        columns_T = torch.arange(self.tile)
        for start in range(0, len(bar_B), self.tile):
            users_T = (columns_T + start).clamp_max(len(bar_B) - 1)
            scores_BT = self.scores_BT(self.targets_B[users_T])
            bar_B[users_T] = scores_BT[users_T, columns_T]
        return bar_B

    def swept(self, k: int, bar_B: Tensor) -> tuple[Lists, Tensor]:
        """Lists and counts against `bar_B`; the targets' scores in their tiles, -inf where seen."""
        items, users = len(self.items_ID), len(bar_B)
        heap_scores_BK = np.full((users, k), -math.inf, self.scratch.numpy().dtype)
        heap_items_BK = np.full((users, k), -1, np.int64)
        counts_B, found_B = np.zeros(users, np.int64), torch.full_like(bar_B, math.inf)
        next_B = self.bounds_B1[:-1].numpy().copy()
        targets_B = np.full(users, -1) if self.targets_B is None else self.targets_B.numpy()
        for done in range(0, items, self.tile):
            first = min(done, items - self.tile)
            scores_BT = self.scores_BT(slice(first, first + self.tile)).numpy()
            sweep(
                scores_BT, first, done, next_B, self.bounds_B1.numpy(), self.seen_P.numpy(), targets_B,
                bar_B.numpy(), found_B.numpy(), counts_B, heap_scores_BK, heap_items_BK,
            )  # fmt: skip
        sort_heaps(heap_scores_BK, heap_items_BK)
        ranks_B = None if self.targets_B is None else torch.from_numpy(counts_B) - 1
        return (torch.from_numpy(heap_items_BK), torch.from_numpy(heap_scores_BK), ranks_B), found_B


@numba.njit
def sink(scores_K: np.ndarray, items_K: np.ndarray, size: int, score: float, item: int) -> None:
    """Put (score, item) in place of the root, the worst: lowest score, of equal ones the largest id."""
    hole = 0
    while 2 * hole + 1 < size:
        child = 2 * hole + 1
        other = child + 1
        if other < size and (
            scores_K[other] < scores_K[child]
            or (scores_K[other] == scores_K[child] and items_K[other] > items_K[child])
        ):
            child = other
        if score < scores_K[child] or (score == scores_K[child] and item > items_K[child]):
            break
        scores_K[hole], items_K[hole] = scores_K[child], items_K[child]
        hole = child
    scores_K[hole], items_K[hole] = score, item


@numba.njit
def offer(part_T: np.ndarray, first: int, scores_K: np.ndarray, items_K: np.ndarray) -> None:
    """Items come by rising id, so one that equals the worst of the heap never takes its place."""
    least = scores_K[0]
    for column in range(part_T.size):
        if part_T[column] > least:
            sink(scores_K, items_K, scores_K.size, part_T[column], first + column)
            least = scores_K[0]


@numba.njit(parallel=True)
def sweep(
    scores_BT: np.ndarray, start_of_tile: int, first: int, next_B: np.ndarray, offsets_B1: np.ndarray,
    seen_P: np.ndarray, targets_B: np.ndarray, bar_B: np.ndarray, found_B: np.ndarray, counts_B: np.ndarray,
    heap_scores_BK: np.ndarray, heap_items_BK: np.ndarray,
) -> None:  # fmt: skip
    """A tile from item `first` on: leave out what is seen, count against the bar, fill the heaps."""
    for row in numba.prange(scores_BT.shape[0]):
        whole_T = scores_BT[row]
        scores_T = whole_T[first - start_of_tile :]
        place = next_B[row]
        while place < offsets_B1[row + 1] and seen_P[place] < first + scores_T.size:
            scores_T[seen_P[place] - first] = -np.inf
            place += 1
        next_B[row] = place
        if first <= targets_B[row] < first + scores_T.size:
            found_B[row] = scores_T[targets_B[row] - first]
        bar = bar_B[row]
        count = np.int32(0)
        for start in range(0, scores_T.size, SCAN):
            part_T = scores_T[start : start + SCAN]
            least = heap_scores_BK[row, 0]
            better = np.int32(0)
            for column in range(part_T.size):
                count += np.int32(part_T[column] >= bar)
                better += np.int32(part_T[column] > least)
            if better > 0:
                offer(part_T, first + start, heap_scores_BK[row], heap_items_BK[row])
        counts_B[row] += count


@numba.njit(parallel=True)
def sort_heaps(scores_BK: np.ndarray, items_BK: np.ndarray) -> None:
    """From heaps to lists, the best first."""
    for row in numba.prange(scores_BK.shape[0]):
        for size in range(scores_BK.shape[1] - 1, 0, -1):
            score, item = scores_BK[row, size], items_BK[row, size]
            scores_BK[row, size], items_BK[row, size] = scores_BK[row, 0], items_BK[row, 0]
            sink(scores_BK[row], items_BK[row], size, score, item)
