"""Rows of different lengths in one flat array.

Shapes: N rows, V values of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit


@dataclass(frozen=True)
class Ragged:
    """Row n is `values[start_N[n] : start_N[n] + length_N[n]]`; rows may lie in any order.

    `values` has one or more dimensions, the first of which is cut; `start_N` and `length_N` are int64.
    """

    values: np.ndarray
    start_N: np.ndarray
    length_N: np.ndarray

    def __len__(self) -> int:
        return len(self.start_N)

    def row(self, index: int) -> np.ndarray:
        start = int(self.start_N[index])
        return self.values[start : start + int(self.length_N[index])]

    def take(self, index_M: np.ndarray) -> Ragged:
        """Some rows, by index or mask; the values stay where they are."""
        return Ragged(self.values, self.start_N[index_M], self.length_N[index_M])

    def flat(self) -> np.ndarray:
        """The values of all rows in the order of the rows."""
        if self.values.ndim > 1:
            return self.values[ranges(self.start_N, self.length_N)]
        return laid_out(self.values, self.start_N, self.length_N)


@njit(cache=True)
def laid_out(values: np.ndarray, start_N: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """As by an index of all places, which would take twice the memory of the ids."""
    flat = np.empty(length_N.sum(), values.dtype)
    t = 0
    for n in range(len(start_N)):
        for k in range(start_N[n], start_N[n] + length_N[n]):
            flat[t] = values[k]
            t += 1
    return flat


def end_to_end(values: np.ndarray, length_N: np.ndarray) -> Ragged:
    """Rows that lie one behind the other."""
    length_N = np.asarray(length_N, dtype=np.int64)
    return Ragged(values, np.cumsum(length_N) - length_N, length_N)


def from_rows(rows: Sequence[Sequence[int] | np.ndarray]) -> Ragged:
    """Rows of integers, as int64."""
    values = np.concatenate([np.empty(0, np.int64), *(np.asarray(row, dtype=np.int64) for row in rows)])
    return end_to_end(values, np.asarray([len(row) for row in rows], dtype=np.int64))


def from_column(values_N: np.ndarray) -> Ragged:
    """One value a row."""
    return end_to_end(values_N, np.ones(len(values_N), np.int64))


def joined(parts: Sequence[Ragged]) -> Ragged:
    """The rows of all parts, one part behind the other."""
    if len(parts) == 1:
        return parts[0]
    bases = np.cumsum([0, *(len(part.values) for part in parts[:-1])])
    return Ragged(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.start_N + base for part, base in zip(parts, bases, strict=True)]),
        np.concatenate([part.length_N for part in parts]),
    )


def ranges(start_N: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of every row, all rows in one array (V,), int64."""
    end_N = np.cumsum(length_N)
    total = int(end_N[-1]) if len(end_N) else 0
    index_V = np.repeat(start_N - (end_N - length_N), length_N)
    index_V += np.arange(total)
    return index_V


def row_sums(values_V: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """The sum over each of the rows that lie one behind the other, (N,) int64."""
    sums_V1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(values_V, dtype=np.int64)])
    end_N = np.cumsum(length_N)
    return sums_V1[end_N] - sums_V1[end_N - length_N]
