"""Samples of a packed row that begin alike: the beginning is computed once.

Instructions of one task start with the same words, questions about one user with the same history. What a
token becomes depends on the tokens before it alone, so a sample can see an earlier one's first tokens in
place of its own: losses and gradients stay what they were, and the row is shorter by what is shared.

Shapes: T tokens of the row as the stream made it, M tokens that are computed (M <= T), A positions whose
logits are wanted, S samples.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch

from recloom.data_shards.stream import PackedRow
from recloom.trainer.block_attention import Ranges

SHORTEST = 8  # tokens; copying the keys of fewer costs what they spare


@dataclass(frozen=True)
class SharedRow:
    """row: M tokens, `boundaries` those of the samples' own tokens, `position_ids_T` as before. keep_A: the
    wanted positions in it. before_S: the tokens of the row that each sample sees in front of its own."""

    row: PackedRow
    keep_A: torch.Tensor
    before_S: list[Ranges]


@dataclass
class Beginnings:
    """The samples so far, sorted by their tokens, so that the longest common beginning is a neighbour's.

    paths: where each sample's tokens lie in the new row, by its number.
    """

    sorted: list[tuple[bytes, int]] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    paths: list[Ranges] = field(default_factory=list)

    def longest(self, ids_N: np.ndarray) -> tuple[int, int]:
        """How many first tokens an earlier sample has in common with these, and which one has the most."""
        place = bisect_left(self.sorted, (sortable(ids_N), -1))
        neighbours = [number for _, number in self.sorted[max(0, place - 1) : place + 1]]
        return max(((common(ids_N, self.tokens[number]), number) for number in neighbours), default=(0, 0))

    def add(self, ids_N: np.ndarray, path: Ranges) -> None:
        insort(self.sorted, (sortable(ids_N), len(self.tokens)))
        self.tokens.append(ids_N)
        self.paths.append(path)


def share_beginnings(row: PackedRow, keep_A: torch.Tensor) -> SharedRow:
    """Let samples see what earlier ones of the row have computed for the same first tokens.

    A sample keeps a token of its own and all from its first wanted position on. Rows with slots are not for
    this: their tokens do not tell which vector stands where.
    """
    assert row.slots is None, "tokens at slots look alike and are not"
    ids_T, wanted_T = row.ids_T.numpy(), np.zeros(len(row.ids_T), bool)
    wanted_T[keep_A.numpy()] = True
    known, own_M, before_S, bounds = Beginnings(), list[np.ndarray](), list[Ranges](), [0]
    for start, end in pairwise(row.boundaries.tolist()):
        most = min(end - start - 1, first_true(wanted_T[start:end]))
        shared, earlier = known.longest(ids_T[start : start + most])
        shared = shared if shared >= SHORTEST else 0
        before = cut(known.paths[earlier], shared) if shared else ()
        own_M.append(np.arange(start + shared, end))
        bounds.append(bounds[-1] + len(own_M[-1]))
        before_S.append(before)
        known.add(ids_T[start:end], (*before, (bounds[-2], bounds[-1])))
    return shortened(row, keep_A, np.concatenate(own_M), bounds, before_S)


def shortened(
    row: PackedRow, keep_A: torch.Tensor, own_M: np.ndarray, bounds: list[int], before_S: list[Ranges]
) -> SharedRow:
    """The row with the tokens `own_M` only."""
    index_M = torch.from_numpy(own_M)
    place_T = torch.full((len(row.ids_T),), -1)
    place_T[index_M] = torch.arange(len(own_M))
    new = replace(
        row,
        ids_T=row.ids_T[index_M],
        position_ids_T=row.position_ids_T[index_M],
        labels_T=row.labels_T[index_M],
        boundaries=torch.tensor(bounds, dtype=torch.int32),
    )
    return SharedRow(new, place_T[keep_A], before_S)


def sortable(ids_N: np.ndarray) -> bytes:
    """Bytes that sort as the tokens do."""
    return ids_N.astype(">i8").tobytes()


def common(left_N: np.ndarray, right_N: np.ndarray) -> int:
    """How many first tokens are the same."""
    length = min(len(left_N), len(right_N))
    return first_true(left_N[:length] != right_N[:length])


def first_true(flags_N: np.ndarray) -> int:
    """The first place that is true, or how many there are."""
    return int(flags_N.argmax()) if flags_N.any() else len(flags_N)


def cut(path: Ranges, length: int) -> Ranges:
    """The first `length` tokens of a path."""
    kept = list[tuple[int, int]]()
    for start, end in path:
        if length > 0:
            kept.append((start, min(end, start + length)))
        length -= end - start
    return tuple(kept)
