"""Vectors of all texts of a folder of shards, by all ranks together or one process, in chunks that outlive a
kill.

Shapes: M texts of a chunk, N texts, H width of the LLM.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from recloom.data_shards.artifacts import (
    atomic_write_bytes,
    file_sha256,
    read_manifest,
    write_manifest,
)
from recloom.data_shards.errors import UserError
from recloom.data_shards.packing import pack_window
from recloom.data_shards.stream import build_row
from recloom.trainer.parallel_layout import ALONE, RankLayout, sum_over_data
from recloom.trainer.systems.laser.objective import RowReader, nothing
from recloom.trainer.systems.laser.settings import EmbedBlock

FILE = "vectors.safetensors"
Value = TypeVar("Value")


def embed(
    engine: Any,
    reader: RowReader,
    settings: EmbedBlock,
    folder: Path,
    label: str,
    layout: RankLayout = ALONE,
) -> Tensor:
    """Vectors (N, H) in float32, of every text of `reader.source`, in its order; on all ranks.

    A folder that is complete is read, one that is not goes on behind its last whole chunk. Called by all
    ranks of a launch or by a process of its own, in evaluation mode; the folder must belong to the weights
    that `engine` has now.
    """
    if is_complete(folder):
        return read_vectors(folder)
    chunks = list(chunks_of(len(reader.source), settings.chunk))
    done = whole_parts(folder)
    shown = tqdm(chunks, desc=label, unit="chunk", disable=None if is_first() else True)
    for number, chunk in enumerate(shown):
        if number >= done:
            vectors_MH = embed_chunk(engine, reader, chunk, settings.pack_length, layout)
            if is_first():
                save_part(folder, number, vectors_MH)
    wait_for_all()
    if is_first():
        join_parts(folder, len(chunks))
    wait_for_all()
    return read_vectors(folder)


def ranks() -> tuple[int, int]:
    """Number of this rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_first() -> bool:
    return ranks()[0] == 0


def wait_for_all() -> None:
    if ranks()[1] > 1:
        dist.barrier()


def from_first(value: Value) -> Value:
    """Rank 0's value on all ranks."""
    told = [value]
    if ranks()[1] > 1:
        dist.broadcast_object_list(told, src=0)
    return told[0]


def chunks_of(total: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, total)) for start in range(0, total, size))


@torch.no_grad()
def embed_chunk(
    engine: Any, reader: RowReader, chunk: Sequence[int], capacity: int, layout: RankLayout
) -> Tensor:
    """Vectors (M, H): each rank reads its rows, and all add up what the others left at zero."""
    rows = [[chunk[place] for place in row] for row in pack_window(reader.source.lengths_N[chunk], capacity)]
    rows += [[]] * (-len(rows) % layout.data_size)  # under ZeRO-3 all ranks gather weights equally often
    vectors_MH = None
    for row in rows[layout.data_rank :: layout.data_size]:
        output = reader.read(engine, build_row(reader.source, row))
        if vectors_MH is None:
            width = output.states_SH.shape[1]
            vectors_MH = torch.zeros(len(chunk), width, dtype=torch.float32, device=reader.device)
        if row:
            places = torch.tensor(row, device=reader.device) - chunk[0]
            vectors_MH[places] = output.states_SH.float()
        else:
            nothing(output)
    assert vectors_MH is not None
    return sum_over_data(vectors_MH, layout).cpu()


def is_complete(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except UserError:
        return False
    return True


def part_path(folder: Path, number: int) -> Path:
    """Parts lie beside the folder, which so is complete or not there."""
    return folder.with_name(f"{folder.name}.parts") / f"{number:05d}.safetensors"


def save_part(folder: Path, number: int, vectors_MH: Tensor) -> None:
    """The checksum is written behind the part and vouches for it."""
    path = part_path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, safetensors.torch.save({"vectors": vectors_MH.contiguous()}))
    atomic_write_bytes(path.with_suffix(".sha256"), file_sha256(path).encode())


def whole_parts(folder: Path) -> int:
    """How many parts from the first on are whole, as rank 0 sees it."""
    done = 0
    if is_first():
        while is_whole(part_path(folder, done)):
            done += 1
    return from_first(done)


def is_whole(path: Path) -> bool:
    checksum = path.with_suffix(".sha256")
    return path.is_file() and checksum.is_file() and checksum.read_text() == file_sha256(path)


def join_parts(folder: Path, count: int) -> None:
    parts = [safetensors.torch.load_file(part_path(folder, n))["vectors"] for n in range(count)]
    write_vectors(folder, torch.cat(parts))
    shutil.rmtree(part_path(folder, 0).parent)


def write_vectors(folder: Path, vectors_NH: Tensor) -> None:
    """One matrix with a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / FILE, safetensors.torch.save({"vectors": vectors_NH.contiguous()}))
    write_manifest(folder, rows=len(vectors_NH), width=vectors_NH.shape[1])


def read_vectors(folder: Path) -> Tensor:
    """Raises UserError for a folder that is incomplete or damaged, or vectors that are not finite."""
    read_manifest(folder, verify=True)
    vectors_NH: Tensor = safetensors.torch.load_file(folder / FILE)["vectors"]
    if not np.isfinite(vectors_NH.sum().item()):
        raise UserError(f"{folder}: its vectors are not finite: lower learning_rate, delete it, run again.")
    return vectors_NH
