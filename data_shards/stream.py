"""The training stream: packed rows in a fixed global order, cut into steps, split over ranks.

Shapes: N samples, S samples of a row, T tokens of a row.

The order of an epoch is a permutation drawn from (seed, epoch), or a part of one. It is cut into windows,
each window is packed by itself and its rows are shuffled, and the rows of all windows in turn form the global
sequence. A step takes the next `rows_per_step` rows; rank r of W takes rows r, r + W, ... of the step. So the
global order does not depend on the number of ranks, and a position in it is a few integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeAlias

import numpy as np
import torch

from recloom.data_shards.errors import UserError
from recloom.data_shards.packing import pack_window
from recloom.data_shards.renderer import SlotPosition

IGNORE = -100  # the label that Hugging Face losses skip


class TokenSource(Protocol):
    """What the stream reads: `ShardReader`, or anything that gives lengths and ids by sample index.

    has_slots: whether samples have places for vectors; `slots` is asked for only then.
    """

    lengths_N: np.ndarray
    num_prompt_N: np.ndarray
    has_slots: bool

    def ids(self, index: int) -> np.ndarray: ...

    def slots(self, index: int) -> list[SlotPosition]: ...


@dataclass(frozen=True)
class PackedRow:
    """Samples laid end to end; an empty row is one token without loss.

    `ids_T`, `position_ids_T` (from 0 in each sample) and `labels_T` int64. `labels_T` is aligned with `ids_T`
    (the model shifts it); prompt tokens and each sample's first token hold -100. `boundaries` int32 (S + 1,):
    starts of the samples and the last end, as in cu_seqlens. `slots`: places for vectors, counted in the row;
    None where the source has none at all.
    """

    ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    labels_T: torch.Tensor
    sample_indices: list[int]
    boundaries: torch.Tensor
    slots: list[SlotPosition] | None = None


@dataclass(frozen=True)
class StepBatch:
    """One optimizer step. `rows` are this rank's, equally many on each rank; `num_answer_tokens` (tokens with
    loss) and `sample_ids` are of all ranks."""

    step: int
    epoch: int
    rows: list[PackedRow]
    num_answer_tokens: int
    sample_ids: list[int]


# A row of samples in an epoch.
RowMaker: TypeAlias = Callable[[int, Sequence[int]], PackedRow]


class PackedStream:
    """Deterministic, resumable, elastic stream of packed rows.

    Iterating gives the rest of the current epoch and ends with the stream at the start of the next one.
    `rows_per_step` counts the rows of all ranks and must be a multiple of `world_size` (else UserError). The
    last step of an epoch is filled up with empty rows. make_row: what samples become (`build_row` when left
    out); no samples give a row without loss. epoch_samples: the permutation is cut into even
    parts of at most so many samples, each is an epoch, and a new one is drawn when all are through.
    """

    def __init__(
        self,
        source: TokenSource,
        capacity: int,
        rows_per_step: int,
        window: int,
        seed: int,
        rank: int,
        world_size: int,
        make_row: RowMaker | None = None,
        epoch_samples: int | None = None,
    ) -> None:
        for name, value in (("capacity", capacity), ("rows_per_step", rows_per_step), ("window", window)):
            if value < 1:
                raise UserError(f"{name}: {value} is too small, it must be at least 1: raise it.")
        if rows_per_step % world_size:
            raise UserError(
                f"rows_per_step: {rows_per_step} is no multiple of the {world_size} ranks: "
                f"set it to {-(-rows_per_step // world_size) * world_size}."
            )
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        if not len(source.lengths_N):
            raise UserError("training data: there is no sample in it: check how it was made.")
        self._make_row = make_row or (lambda _, indices: build_row(source, indices))
        self._lengths_N = np.asarray(source.lengths_N)
        self._num_losses_N = self._lengths_N - np.maximum(source.num_prompt_N, 1)
        self.capacity, self.rows_per_step, self.window = capacity, rows_per_step, window
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.num_parts = -(-len(self._lengths_N) // (epoch_samples or len(self._lengths_N)))
        self._order = lru_cache(maxsize=1)(self._draw_order)
        self._window_rows = lru_cache(maxsize=2)(self._pack_rows)
        self.load_state({"epoch": 0, "step": 0, "window": 0, "row": 0})

    @property
    def epoch(self) -> int:
        return self._epoch

    def state(self) -> dict[str, int]:
        """Where the next step begins: its epoch and number, and the window and row its first row comes from.

        The same at every rank and world size. Already counts a step as done when the iterator gives it.
        """
        return {"epoch": self._epoch, "step": self._step, "window": self._window, "row": self._row}

    def load_state(self, state: dict[str, int]) -> None:
        """Continue from a `state()`; packs no window but the one it stands in."""
        self._epoch, self._step = state["epoch"], state["step"]
        self._window, self._row = state["window"], state["row"]

    def num_steps(self, epoch: int) -> int:
        """Steps of an epoch; packs all its windows (lengths only)."""
        num_rows = sum(len(self._window_rows(epoch, window)) for window in range(self._num_windows(epoch)))
        return -(-num_rows // self.rows_per_step)

    def lengths_of(self, sample_ids: list[int]) -> np.ndarray:
        """Tokens of the samples."""
        return self._lengths_N[sample_ids]

    def __iter__(self) -> Iterator[StepBatch]:
        epoch = self._epoch
        while self._epoch == epoch:
            step, step_rows = self._step, self._take_rows()
            yield self._batch(epoch, step, step_rows)

    def _take_rows(self) -> list[list[int]]:
        """The sample indices of the next step's rows; moves the position behind them."""
        taken: list[list[int]] = []
        num_windows = self._num_windows(self._epoch)
        while len(taken) < self.rows_per_step and self._window < num_windows:
            rows = self._window_rows(self._epoch, self._window)
            part = rows[self._row : self._row + self.rows_per_step - len(taken)]
            taken += part
            self._row += len(part)
            if self._row == len(rows):
                self._window, self._row = self._window + 1, 0
        self._step += 1
        if self._window == num_windows:
            self._epoch, self._step, self._window = self._epoch + 1, 0, 0
        return taken

    def _num_windows(self, epoch: int) -> int:
        return -(-len(self._order(epoch)) // self.window)

    def _draw_order(self, epoch: int) -> np.ndarray:
        """The samples of an epoch: a permutation, or its part whose turn it is."""
        number, part = divmod(epoch, self.num_parts)
        order_N = np.random.default_rng([self.seed, number]).permutation(len(self._lengths_N))
        return np.array_split(order_N, self.num_parts)[part]

    def _pack_rows(self, epoch: int, window: int) -> list[list[int]]:
        """The rows of a window as sample indices, in the order of the stream."""
        members = self._order(epoch)[window * self.window : (window + 1) * self.window]
        rows = pack_window(self._lengths_N[members], self.capacity)
        shuffled = np.random.default_rng([self.seed, epoch, window]).permutation(len(rows))
        return [members[rows[k]].tolist() for k in shuffled]

    def _batch(self, epoch: int, step: int, step_rows: list[list[int]]) -> StepBatch:
        filled = step_rows + [[] for _ in range(self.rows_per_step - len(step_rows))]
        sample_ids = [index for row in step_rows for index in row]
        rows = [self._make_row(epoch, indices) for indices in filled[self.rank :: self.world_size]]
        return StepBatch(step, epoch, rows, int(self._num_losses_N[sample_ids].sum()), sample_ids)


def build_row(source: TokenSource, indices: Sequence[int]) -> PackedRow:
    """Lay samples end to end; no samples give an empty row."""
    ids = [np.asarray(source.ids(index), dtype=np.int64) for index in indices] or [
        np.zeros(1, dtype=np.int64)
    ]
    num_prompts = [max(int(source.num_prompt_N[index]), 1) for index in indices] or [1]
    labels = []
    for ids_T, num_prompt in zip(ids, num_prompts, strict=True):
        labels.append(np.concatenate([np.full(num_prompt, IGNORE), ids_T[num_prompt:]]))
    boundaries = np.cumsum([0, *map(len, ids)])
    return PackedRow(
        ids_T=torch.from_numpy(np.concatenate(ids)),
        position_ids_T=torch.from_numpy(np.concatenate([np.arange(len(ids_T)) for ids_T in ids])),
        labels_T=torch.from_numpy(np.concatenate(labels)),
        sample_indices=list(indices),
        boundaries=torch.tensor(boundaries, dtype=torch.int32),
        slots=row_slots(source, indices, boundaries) if source.has_slots else None,
    )


def row_slots(source: TokenSource, indices: Sequence[int], boundaries: np.ndarray) -> list[SlotPosition]:
    """The samples' slots, counted from the start of the row."""
    starts = boundaries.tolist()
    return [
        (start + position, kind, id)
        for start, index in zip(starts, indices, strict=False)
        for position, kind, id in source.slots(index)
    ]
