"""Many rendered sequences in flat arrays, and the packed rows that are made of them.

Shapes: N sequences, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numba import njit

from recloom.data_shards.packing import pack_window
from recloom.data_shards.ragged import Ragged, joined
from recloom.data_shards.renderer import Rendered, SlotPosition, Span
from recloom.data_shards.stream import IGNORE, PackedRow
from recloom.data_shards.units import as_arrays, decoded


@dataclass(frozen=True)
class RenderedBatch:
    """Many of what `Rendered` is one of.

    `ids_by_sample` int32; `spans_by_sample` (start, end, kind, id) and `slots_by_sample` (position, kind,
    id), int64, counted from a sequence's first token, coded as in `units.py`. `num_prompt_N` int64.
    It is a `stream.TokenSource`: a `PackedStream` reads it as it reads shards.
    """

    ids_by_sample: Ragged
    spans_by_sample: Ragged
    slots_by_sample: Ragged
    num_prompt_N: np.ndarray

    @property
    def lengths_N(self) -> np.ndarray:
        return self.ids_by_sample.length_N

    @property
    def has_slots(self) -> bool:
        return bool(self.slots_by_sample.length_N.any())

    def __len__(self) -> int:
        return len(self.num_prompt_N)

    def ids(self, index: int) -> np.ndarray:
        """Token ids of a sequence, int32 (T,)."""
        return self.ids_by_sample.row(index)

    def spans(self, index: int) -> list[Span]:
        return decoded(self.spans_by_sample.row(index))

    def slots(self, index: int) -> list[SlotPosition]:
        return decoded(self.slots_by_sample.row(index))

    def rendered(self, index: int) -> Rendered:
        """One sequence, as `Renderer` gives it."""
        num_prompt = int(self.num_prompt_N[index])
        return Rendered(self.ids(index), num_prompt, self.spans(index), self.slots(index))

    def take(self, index_M: np.ndarray) -> RenderedBatch:
        """Some sequences, by index; nothing is copied."""
        return RenderedBatch(
            self.ids_by_sample.take(index_M),
            self.spans_by_sample.take(index_M),
            self.slots_by_sample.take(index_M),
            self.num_prompt_N[index_M],
        )


def batch_of(sequences: Sequence[Rendered]) -> RenderedBatch:
    num_prompt_N = np.asarray([one.num_prompt for one in sequences], dtype=np.int64)
    return RenderedBatch(*as_arrays(sequences), num_prompt_N)


def join_batches(batches: Sequence[RenderedBatch]) -> RenderedBatch:
    """All sequences, one batch behind the other."""
    return RenderedBatch(
        joined([batch.ids_by_sample for batch in batches]),
        joined([batch.spans_by_sample for batch in batches]),
        joined([batch.slots_by_sample for batch in batches]),
        np.concatenate([batch.num_prompt_N for batch in batches]),
    )


def pack_batch(batch: RenderedBatch, capacity: int, window: int) -> Iterator[PackedRow]:
    """All sequences as packed rows of at most `capacity` tokens, each `window` of sequences by itself
    (`packing.pack_window`). Sample indices are places in the batch."""
    for first in range(0, len(batch), window):
        rows = pack_window(batch.lengths_N[first : first + window], capacity)
        yield from build_rows(batch, [[first + k for k in row] for row in rows])


def build_rows(batch: RenderedBatch, rows: Sequence[Sequence[int]]) -> list[PackedRow]:
    """Sequences laid end to end, row by row: what `stream.build_row` gives, all rows at once."""
    order_N = np.fromiter(chain.from_iterable(rows), np.int64)
    ids = batch.ids_by_sample.take(order_N)
    ids_T, labels_T, position_T = row_arrays(ids, np.maximum(batch.num_prompt_N[order_N], 1))
    bounds = np.cumsum(np.concatenate([np.zeros(1, np.int64), ids.length_N]))
    cuts = np.cumsum([0, *map(len, rows)]).tolist()
    has_slots = batch.has_slots
    packed = []
    for indices, first, last in zip(rows, cuts[:-1], cuts[1:], strict=True):
        begin, end = int(bounds[first]), int(bounds[last])
        starts = bounds[first : last + 1] - begin
        packed.append(
            PackedRow(
                ids_T[begin:end],
                position_T[begin:end],
                labels_T[begin:end],
                list(indices),
                torch.from_numpy(starts.astype(np.int32)),
                slots_of(batch, indices, starts.tolist()) if has_slots else None,
            )
        )
    return packed


def row_arrays(ids: Ragged, num_prompt_N: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, labels and positions of sequences laid end to end, int64."""
    arrays = np.empty((3, int(ids.length_N.sum())), np.int64)
    lay_out(ids.values, ids.start_N, ids.length_N, num_prompt_N, *arrays)
    ids_T, labels_T, position_T = torch.from_numpy(arrays)
    return ids_T, labels_T, position_T


@njit(cache=True)
def lay_out(
    values: np.ndarray,
    start_N: np.ndarray,
    length_N: np.ndarray,
    num_prompt_N: np.ndarray,
    ids_T: np.ndarray,
    labels_T: np.ndarray,
    position_T: np.ndarray,
) -> None:
    """Fill the last three."""
    t = 0
    for n in range(len(start_N)):
        for k in range(length_N[n]):
            ids_T[t] = values[start_N[n] + k]
            labels_T[t] = ids_T[t] if k >= num_prompt_N[n] else IGNORE
            position_T[t] = k
            t += 1


def slots_of(batch: RenderedBatch, indices: Sequence[int], starts: Sequence[int]) -> list[SlotPosition]:
    return [
        (start + position, kind, id)
        for start, index in zip(starts, indices, strict=False)
        for position, kind, id in batch.slots(index)
    ]
