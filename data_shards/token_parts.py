"""Token ids of samples in flat files, a part at a time, for corpora too large for a file a sample.

Shapes: N samples, T tokens of a sample.

    tokens-00000.npy   int32, the ids of all samples of the part, end to end
    samples-00000.npy  structured SAMPLE (N,): tokens, prompt tokens, user, and the number of the row asked
    manifest.json      written last by the caller, with `num_parts`

A part is there when its samples file is. `TokenParts` reads a complete folder, as a `stream.TokenSource`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from recloom.data_shards.artifacts import atomic_write_bytes, read_manifest
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import SlotPosition
from recloom.data_shards.user_runs import as_npy

SAMPLE = np.dtype([("length", "<i4"), ("num_prompt", "<i4"), ("user", "<i4"), ("row", "<i8")])
ID_BYTES = 4


def tokens_path(folder: Path, part: int) -> Path:
    return folder / f"tokens-{part:05d}.npy"


def samples_path(folder: Path, part: int) -> Path:
    return folder / f"samples-{part:05d}.npy"


def write_token_part(folder: Path, part: int, ids: np.ndarray, samples_N: np.ndarray) -> None:
    """One part: `ids` int32 of all its samples end to end, `samples_N` of SAMPLE."""
    assert len(ids) == samples_N["length"].sum(dtype=np.int64), "the ids of all samples"
    atomic_write_bytes(tokens_path(folder, part), as_npy(ids.astype(np.int32, copy=False)))
    atomic_write_bytes(samples_path(folder, part), as_npy(samples_N))


class TokenParts:
    """Random access to the samples of a complete folder; ids are read when asked for.

    `samples_N`: what is known of every sample, of SAMPLE. Holds 28 bytes a sample in memory.
    Raises UserError, naming the file, for a folder without manifest, a missing file or a wrong size.
    """

    has_slots = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = read_manifest(folder)
        parts = [np.load(samples_path(folder, part)) for part in range(self.manifest["num_parts"])]
        self.samples_N = np.concatenate(parts)
        self.lengths_N: np.ndarray = self.samples_N["length"]
        self.num_prompt_N: np.ndarray = self.samples_N["num_prompt"]
        self._first_P1 = np.cumsum([0, *map(len, parts)])
        self._place_N1 = np.concatenate([[0], np.cumsum(self.lengths_N, dtype=np.int64)])
        self._files: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.samples_N)

    def ids(self, index: int) -> np.ndarray:
        """Token ids of a sample, int32 (T,), read-only."""
        part = int(np.searchsorted(self._first_P1, index, side="right")) - 1
        handle, header = self._open(part)
        place = int(self._place_N1[index] - self._place_N1[self._first_P1[part]])
        size = int(self.lengths_N[index]) * ID_BYTES
        data = os.pread(handle, size, header + place * ID_BYTES)
        if len(data) != size:
            raise UserError(
                f"{tokens_path(self.folder, part)}: the file ends too early: make the folder again."
            )
        return np.frombuffer(data, dtype=np.int32)

    def slots(self, index: int) -> list[SlotPosition]:
        """None: such corpora have no places for vectors."""
        return []

    def close(self) -> None:
        for handle, _ in self._files.values():
            os.close(handle)
        self._files.clear()

    def _open(self, part: int) -> tuple[int, int]:
        """A part's file, and the size of its header."""
        if part not in self._files:
            path = tokens_path(self.folder, part)
            header = np.load(path, mmap_mode="r").offset
            self._files[part] = (os.open(path, os.O_RDONLY), header)
        return self._files[part]
