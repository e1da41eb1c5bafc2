"""Softmax over seen keys on a CPU, compiled by numba: each row read once, written twice while it is in cache.

Shape letters as in `seen_softmax.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from recloom.kernels.numba_math import FAST, TOO_LARGE, exp_cut, f4, rounded, u2, widened
from recloom.kernels.numba_threads import as_many_threads_as_torch

if TYPE_CHECKING:
    from recloom.kernels.seen_softmax import SeenKeys


def softmax_on_cpu(scores_KNGS: Tensor, seen: SeenKeys) -> Tensor:
    """bfloat16 only, in place."""
    bits_KNGS = scores_KNGS.detach().view(torch.uint16).numpy()
    ranges = (seen.first_N.numpy(), seen.begin_N.numpy(), seen.end_N.numpy())
    if torch.get_num_threads() == 1:  # a rank among others: numba's threads are not even started
        rows_in_turn(bits_KNGS, *ranges)
    else:
        with as_many_threads_as_torch():
            rows_by_threads(bits_KNGS, *ranges)
    return scores_KNGS


@njit(inline="always", fastmath=FAST)
def exponentials(row: np.ndarray, shift: np.float32, into: np.ndarray) -> np.float32:
    """Their sum."""
    total = f4(0.0)
    for place in range(row.size):
        into[place] = exp_cut(widened(row[place]) - shift)
        total += into[place]
    return total


@njit(inline="always", fastmath=FAST)
def highest(row: np.ndarray, at_least: np.float32) -> np.float32:
    best = at_least
    for place in range(row.size):
        value = widened(row[place])
        best = best if best >= value else value
    return best


@njit(inline="always", fastmath=FAST)
def write(values: np.ndarray, scale: np.float32, row: np.ndarray) -> None:
    for place in range(row.size):
        row[place] = rounded(values[place] * scale)


@njit(inline="always", fastmath=FAST)
def softmax_row(row: np.ndarray, values_S: np.ndarray, first: int, begin: int, end: int) -> None:
    """The shift is the score of the last key seen, mostly the query's own: then the sum is at least 1, and
    where others are so much higher that it overflows, the row is done again with the highest."""
    shift = widened(row[end - 1])
    total = exponentials(row[:first], shift, values_S[:first])
    total += exponentials(row[begin:end], shift, values_S[begin:end])
    if not total < TOO_LARGE:
        shift = highest(row[begin:end], highest(row[:first], f4(-np.inf)))
        total = exponentials(row[:first], shift, values_S[:first])
        total += exponentials(row[begin:end], shift, values_S[begin:end])
    scale = f4(1.0) / total
    write(values_S[:first], scale, row[:first])
    write(values_S[begin:end], scale, row[begin:end])
    row[first:begin] = u2(0)
    row[end:] = u2(0)


# Two functions: numba's cache on disk would not tell two compilations of one apart.
@njit(nogil=True, fastmath=FAST, cache=True)
def rows_in_turn(bits_KNGS: np.ndarray, first_N: np.ndarray, begin_N: np.ndarray, end_N: np.ndarray) -> None:
    groups, queries, heads, keys = bits_KNGS.shape
    values_S = np.empty(keys, np.float32)
    for group in range(groups):
        for query in range(queries):
            for head in range(heads):
                row = bits_KNGS[group, query, head]
                softmax_row(row, values_S, first_N[query], begin_N[query], end_N[query])


@njit(parallel=True, nogil=True, fastmath=FAST, cache=True)
def rows_by_threads(
    bits_KNGS: np.ndarray, first_N: np.ndarray, begin_N: np.ndarray, end_N: np.ndarray
) -> None:
    groups, queries, heads, keys = bits_KNGS.shape
    for number in prange(groups * queries):
        group, query = number // queries, number % queries
        values_S = np.empty(keys, np.float32)
        for head in range(heads):
            row = bits_KNGS[group, query, head]
            softmax_row(row, values_S, first_N[query], begin_N[query], end_N[query])
