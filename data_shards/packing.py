"""Best-fit packing of samples into rows, and the attention mask that keeps samples apart.

Shapes: N samples, S samples of a row, T tokens of a row, B = 1 row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from numba import njit


def pack_window(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Indices of the samples, row by row, each row at most `capacity` tokens long.

    Best-fit decreasing, and where fewer rows are not out of question, row by row the best filling; the fewer
    rows win. Filling helps where samples are long and alike, at a third of the capacity, say. A sample longer
    than `capacity` gets a row of its own. Depends on lengths and their order only.
    """
    lengths_N = np.asarray(lengths, dtype=np.int64)
    rows = best_fit_decreasing(lengths_N, capacity)
    if len(rows) <= fewest_rows(lengths_N, capacity):
        return rows
    return min(rows, fill_rows(lengths_N, capacity), key=len)


def fewest_rows(lengths_N: np.ndarray, capacity: int) -> int:
    """No packing has fewer: what the tokens need, and of the samples above 1 / (k + 1) of a row k a row."""
    if not len(lengths_N):
        return 0
    sorted_N = np.sort(np.minimum(lengths_N, capacity))
    k_K = np.arange(1, max(1, capacity // max(1, int(sorted_N[0]))) + 1)
    longer_K = len(sorted_N) - np.searchsorted(sorted_N, capacity // (k_K + 1), side="right")
    return max(int(-(-sorted_N.sum() // capacity)), int((-(-longer_K // k_K)).max()))


def best_fit_decreasing(lengths_N: np.ndarray, capacity: int) -> list[list[int]]:
    """Longest first, each sample into the row with the least room that takes it.

    O(n log n): rows are found by free space, of which there are at most `capacity` distinct values.
    """
    rows: list[list[int]] = []
    free: list[int] = []  # distinct free spaces, sorted
    rows_by_free: dict[int, list[int]] = {}
    for index in np.argsort(-lengths_N, kind="stable").tolist():
        length = int(lengths_N[index])
        slot = bisect_left(free, length)
        if slot == len(free):
            row, space = len(rows), capacity
            rows.append([])
        else:
            space = free[slot]
            row = rows_by_free[space].pop()
            if not rows_by_free[space]:
                del free[slot], rows_by_free[space]
        rows[row].append(index)
        rest = space - length
        if rest > 0:
            if rest not in rows_by_free:
                insort(free, rest)
            rows_by_free.setdefault(rest, []).append(row)
    return rows


def fill_rows(lengths_N: np.ndarray, capacity: int) -> list[list[int]]:
    """Each row starts with the longest sample left and takes the samples that fill it best."""
    order_N = np.argsort(-lengths_N, kind="stable")
    row_N, place_N = filled_rows(lengths_N[order_N], capacity)
    taken_N = order_N[np.lexsort((place_N, row_N))]
    return [row.tolist() for row in np.split(taken_N, np.cumsum(np.bincount(row_N))[:-1])]


@njit(cache=True)
def filled_rows(lengths_N: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """The row of every sample, and its place in the row; `lengths_N` int64 in descending order."""
    left = np.arange(len(lengths_N))
    row_N, place_N = np.empty_like(left), np.empty_like(left)
    row = 0
    while len(left):
        chosen = best_filling(lengths_N[left[1:]], capacity - lengths_N[left[0]]) + 1
        is_left = np.ones(len(left), np.bool_)
        is_left[0] = False
        row_N[left[0]], place_N[left[0]] = row, 0
        for place in range(len(chosen)):
            row_N[left[chosen[place]]], place_N[left[chosen[place]]] = row, place + 1
            is_left[chosen[place]] = False
        left = left[is_left]
        row += 1
    return row_N, place_N


@njit(cache=True)
def best_filling(lengths_N: np.ndarray, space: int) -> np.ndarray:
    """Positions, last first, of the samples that fill `space` best; `lengths_N` int64 in descending order.

    Subset sum on a bit set, 64 sums a word: `first[t]` is the first sample with which sum t can be reached.
    """
    space = max(space, 0)
    words = np.zeros((space >> 6) + 1, np.uint64)
    words[0] = 1
    first = np.full(len(words) * 64, -1)
    for k in range(np.searchsorted(-lengths_N, -space), len(lengths_N)):
        jump, shift = lengths_N[k] >> 6, np.uint64(lengths_N[k] & 63)
        for w in range(len(words) - 1, jump - 1, -1):
            sums = words[w - jump] << shift
            if shift and w > jump:
                sums |= words[w - jump - 1] >> (np.uint64(64) - shift)
            sums &= ~words[w]
            words[w] |= sums
            t = w << 6
            while sums:
                if sums & np.uint64(1):
                    first[t] = k
                sums >>= np.uint64(1)
                t += 1
        if first[space] >= 0:
            break
    total = space
    while total > 0 and first[total] < 0:
        total -= 1
    chosen = np.empty(len(lengths_N), np.int64)
    count = 0
    while total > 0:
        chosen[count] = first[total]
        total -= lengths_N[first[total]]
        count += 1
    return chosen[:count]


def packing_efficiency(
    lengths: Sequence[int] | np.ndarray, rows: Sequence[Sequence[int]], capacity: int
) -> float:
    """Tokens of the packed samples over the room of their rows (a longer row counts its own length)."""
    lengths_N = np.asarray(lengths, dtype=np.int64)
    if not rows:
        return 1.0
    room = sum(max(capacity, int(lengths_N[list(row)].sum())) for row in rows)
    return float(lengths_N[list(chain.from_iterable(rows))].sum()) / room


def block_causal_mask(boundaries: torch.Tensor, num_tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """The attention mask of a packed row, (B=1, 1, T, T): a token sees itself and what is before it in its
    sample.

    `boundaries` (S + 1,) holds the samples' starts and the last end; tokens behind it (padding) form one more
    block. Boolean dtype: True = attend (PyTorch's SDPA). Floating dtype: 0 or the lowest value, to be added.
    """
    position_T = torch.arange(num_tokens, device=boundaries.device)
    block_T = torch.searchsorted(boundaries.long(), position_T, right=True)
    allowed_TT = (block_T[:, None] == block_T[None, :]) & (position_T[:, None] >= position_T[None, :])
    mask_BXTT = allowed_TT[None, None]
    if dtype == torch.bool:
        return mask_BXTT
    return torch.zeros_like(mask_BXTT, dtype=dtype).masked_fill(~mask_BXTT, torch.finfo(dtype).min)
