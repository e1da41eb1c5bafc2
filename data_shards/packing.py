"""Best-fit packing of samples into rows, and the attention mask that keeps samples apart.

Shapes: N samples, S samples of a row, T tokens of a row, B = 1 row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch


def pack_window(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Indices of the samples, row by row, each row at most `capacity` tokens long.

    Best-fit decreasing, and where that leaves more rows than the tokens need, row by row the best filling;
    the fewer rows win. Filling helps where samples are long and alike, at a third of the capacity, say. A
    sample longer than `capacity` gets a row of its own. Depends on lengths and their order only.
    """
    lengths_N = np.asarray(lengths, dtype=np.int64)
    rows = best_fit_decreasing(lengths_N, capacity)
    if len(rows) * capacity < lengths_N.sum() + capacity:
        return rows
    return min(rows, fill_rows(lengths_N, capacity), key=len)


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
    order = np.argsort(-lengths_N, kind="stable").tolist()
    left = [(int(lengths_N[index]), index) for index in order]
    rows: list[list[int]] = []
    while left:
        length, index = left.pop(0)
        chosen = best_filling([length for length, _ in left], capacity - length)
        rows.append([index, *(left.pop(k)[1] for k in chosen)])
    return rows


def best_filling(lengths: list[int], space: int) -> list[int]:
    """Positions, last first, of the samples that fill `space` best; `lengths` come in descending order.

    Subset sum on a bit set: bit t of `reachable[k]` says that some of the first k samples add up to t.
    """
    space = max(space, 0)
    start = bisect_left(lengths, -space, key=lambda length: -length)
    mask = (1 << (space + 1)) - 1
    reachable = [1]
    for length in lengths[start:]:
        reachable.append((reachable[-1] | reachable[-1] << length) & mask)
        if reachable[-1] >> space:
            break
    total = reachable[-1].bit_length() - 1
    chosen = []
    for k in range(len(reachable) - 1, 0, -1):
        if not reachable[k - 1] >> total & 1:
            chosen.append(start + k - 1)
            total -= lengths[start + k - 1]
    return chosen


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
