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
    """Best-fit decreasing: indices of the samples, row by row, each row at most `capacity` tokens long.

    A sample longer than `capacity` gets a row of its own. Depends on lengths and order only. O(n log n): rows
    are found by free space, of which there are at most `capacity` distinct values.
    """
    lengths_N = np.asarray(lengths, dtype=np.int64)
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


def packing_efficiency(lengths: Sequence[int] | np.ndarray, rows: Sequence[Sequence[int]], capacity: int) -> float:
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
