"""Interactions of any number, brought together by user on disk.

Shapes: N rows, U users, P parts.

An external sort in two passes. The users are cut into parts of consecutive users. Pass one reads the source
by groups of rows and leaves each as a run, in which the rows of a part lie together. Pass two takes a part's
rows out of all runs and sorts them by user and time. Memory is that of a group or a part, work is linear, and
a run that is finished is kept when the work is taken up again.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recloom.data_shards.artifacts import atomic_write_bytes
from recloom.data_shards.errors import UserError
from recloom.data_shards.tables import OPTIONAL, REQUIRED

ROW = np.dtype([("user", "<i4"), ("item", "<i4"), ("rating", "<f4"), ("timestamp", "<i8")])


@dataclass(frozen=True)
class Source:
    """A Parquet file of interactions in any order: user, item, timestamp, and rating where it has one; ids
    are dense, of `num_users` users and `num_items` items."""

    path: Path
    num_users: int
    num_items: int

    def check(self) -> None:
        """Raises UserError for a missing file or column, or a wrong type."""
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file: name a Parquet file of interactions.")
        schema = pq.read_schema(self.path)
        for name, kind in {**REQUIRED["interactions"], "rating": OPTIONAL["rating"]}.items():
            if name not in schema.names and name != "rating":
                raise UserError(f"{self.path}: there is no column {name}: the file must give it.")
            if name in schema.names and schema.field(name).type != kind:
                raise UserError(f"{self.path}: {name} is {schema.field(name).type}, it must be {kind}.")

    @property
    def has_ratings(self) -> bool:
        return "rating" in pq.read_schema(self.path).names


@dataclass(frozen=True)
class Parts:
    """Users first_user_P1[p] to first_user_P1[p + 1] are part p; its sorted rows begin at first_row_P1[p]."""

    first_user_P1: np.ndarray
    first_row_P1: np.ndarray

    def __len__(self) -> int:
        return len(self.first_user_P1) - 1


def plan_parts(source: Source, rows_per_part: int) -> Parts:
    """Parts of about as many rows; one user's rows are never divided. Reads the users alone."""
    count_U = np.zeros(source.num_users, np.int64)
    file = pq.ParquetFile(source.path)
    for batch in file.iter_batches(columns=["user"]):
        user_N = id_column(source, batch, "user", source.num_users)
        count_U += np.bincount(user_N, minlength=source.num_users)
    end_U = np.cumsum(count_U)
    num_rows = int(end_U[-1])
    if not num_rows:
        raise UserError(f"{source.path}: there are no rows in it: check how it was made.")
    cuts = np.searchsorted(end_U, np.arange(rows_per_part, num_rows, rows_per_part)) + 1
    first_user_P1 = np.unique(np.concatenate([[0], cuts, [source.num_users]]))
    return Parts(first_user_P1, np.concatenate([[0], end_U])[first_user_P1])


def column_of(source: Source, batch: pa.RecordBatch | pa.Table, column: str) -> np.ndarray:
    """Raises UserError for nulls."""
    values = batch.column(column)
    if values.null_count:
        raise UserError(f"{source.path}: {column} holds nulls: fill or drop them.")
    return values.to_numpy()


def id_column(source: Source, batch: pa.RecordBatch | pa.Table, column: str, count: int) -> np.ndarray:
    """Raises UserError for nulls and for ids outside of 0..count - 1."""
    id_N = column_of(source, batch, column)
    if len(id_N) and not 0 <= id_N.min() <= id_N.max() < count:
        raise UserError(f"{source.path}: {column} must lie in 0..{count - 1}.")
    return id_N


def plan_runs(source: Source, rows_per_run: int) -> list[list[int]]:
    """Which row groups of the source each run reads; a group is never divided."""
    metadata = pq.ParquetFile(source.path).metadata
    runs: list[list[int]] = []
    room = 0
    for group in range(metadata.num_row_groups):
        num_rows = metadata.row_group(group).num_rows
        if room < num_rows:
            runs.append([])
            room = rows_per_run
        runs[-1].append(group)
        room -= num_rows
    return runs


def write_runs(source: Source, parts: Parts, rows_per_run: int, folder: Path) -> int:
    """Pass one; runs that are there are kept. Returns the number of runs."""
    runs = plan_runs(source, rows_per_run)
    file = pq.ParquetFile(source.path)
    for number, groups in enumerate(runs):
        if not bounds_path(folder, number).is_file():
            write_run(source, file, groups, parts, folder, number)
    return len(runs)


def write_run(
    source: Source, file: pq.ParquetFile, groups: list[int], parts: Parts, folder: Path, number: int
) -> None:
    """The rows of some row groups, part by part, in file order within a part; the bounds are written last."""
    names = [name for name in ROW.names or () if name != "rating" or source.has_ratings]
    table = file.read_row_groups(groups, columns=names, use_threads=False)
    user_N = id_column(source, table, "user", source.num_users)
    id_column(source, table, "item", source.num_items)
    part_N = np.searchsorted(parts.first_user_P1, user_N, side="right").astype(np.int32) - 1
    order_N = np.argsort(part_N, kind="stable")
    rows_N = np.empty(len(user_N), ROW)
    rows_N["rating"] = np.nan
    for name in names:
        rows_N[name] = column_of(source, table, name)[order_N]
    atomic_write_bytes(rows_path(folder, number), rows_N.tobytes())
    bounds_P1 = np.concatenate([[0], np.cumsum(np.bincount(part_N, minlength=len(parts)))])
    atomic_write_bytes(bounds_path(folder, number), as_npy(bounds_P1))


def read_part(folder: Path, num_runs: int, part: int) -> np.ndarray:
    """Pass two: a part's rows sorted by user, then time, ties in file order; structured ROW, (N,)."""
    pieces = []
    for number in range(num_runs):
        first, last = np.load(bounds_path(folder, number), mmap_mode="r")[part : part + 2].tolist()
        pieces.append(np.fromfile(rows_path(folder, number), ROW, last - first, offset=first * ROW.itemsize))
    rows_N = np.concatenate(pieces)
    return rows_N[np.lexsort((rows_N["timestamp"], rows_N["user"]))]


def rows_path(folder: Path, number: int) -> Path:
    return folder / f"run-{number:05d}.rows"


def bounds_path(folder: Path, number: int) -> Path:
    return folder / f"run-{number:05d}.bounds.npy"


def as_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
