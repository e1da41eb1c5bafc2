"""Vectors by key, from a Parquet or Feather (Arrow IPC) file with the columns `key` and `vector`.

Shapes: K rows of the file, E items or users, D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather
import pyarrow.parquet as pq

from recloom.data_shards.errors import UserError

COLUMNS = ("key", "vector")
READERS = {".parquet": pq.read_table, ".feather": feather.read_table, ".arrow": feather.read_table}


def vectors_of(field: str, path: Path, wanted: pa.ChunkedArray, zeros: bool) -> np.ndarray:
    """The vectors of the keys `wanted`, float32 (E, D); the file may hold others too.

    field: "items" or "users", the setting that names the file. zeros: a key that the file lacks gets zeros.
    Raises UserError for keys that the file lacks, or all keys, or a file that can't be used.
    """
    where = f"{field} = '{path}'"
    keys, vectors_KD = read_vectors(where, path)
    row_E = pc.index_in(wanted, value_set=keys)
    check_found(where, field, wanted.filter(row_E.is_null()).to_pylist(), len(wanted), zeros)
    vectors_ED = vectors_KD[row_E.fill_null(0).to_numpy()]
    vectors_ED[row_E.is_null().to_numpy()] = 0
    return vectors_ED


def check_found(where: str, field: str, lost: list[str], count: int, zeros: bool) -> None:
    """Where every key is lost, the file is of other data, which zeros would only hide."""
    if not lost or (zeros and len(lost) < count):
        return
    remedy = (
        "add them or set missing to zero" if len(lost) < count else "use the ids of the data source as keys"
    )
    raise UserError(f"{where}: {len(lost)} of {count} {field} have no vector, first '{lost[0]}': {remedy}.")


def read_vectors(where: str, path: Path) -> tuple[pa.Array, np.ndarray]:
    """The file's keys as strings and its vectors, finite float32 (K, D)."""
    table = read_table(where, path)
    try:
        keys = table["key"].cast(pa.string()).combine_chunks()
    except pa.ArrowException:
        raise UserError(f"{where}: key is {table['key'].type}, it must be text: write it so.") from None
    if keys.null_count:
        raise UserError(f"{where}: {keys.null_count} rows have no key: fill or drop them.")
    counts = pc.value_counts(keys)
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise UserError(
            f"{where}: {len(twice)} keys occur more than once, first '{twice[0]}': keep one row each."
        )
    return keys, matrix(where, table["vector"])


def read_table(where: str, path: Path) -> pa.Table:
    """The file with both columns and at least one row."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{where}: the suffix must be one of {', '.join(READERS)}: write such a file.")
    if not path.is_file():
        raise UserError(f"{where}: no such file: check the path.")
    try:
        table = reader(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}: it can't be read ({reason}): write the file again.") from None
    lost = [name for name in COLUMNS if table.column_names.count(name) != 1]
    if lost:
        found = ", ".join(table.column_names)
        raise UserError(f"{where}: it needs one column {lost[0]}, the file has {found}: rename one.")
    if table.num_rows == 0:
        raise UserError(f"{where}: the file has no rows: give a vector for every item or user.")
    return table


def matrix(where: str, vectors: pa.ChunkedArray) -> np.ndarray:
    """Lists of numbers, all of one length, as float32 (K, D)."""
    kind = vectors.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise UserError(f"{where}: vector is {kind}, it must be lists of numbers: write it so.")
    widths = pc.value_counts(pc.list_value_length(vectors)).field("values").to_pylist()
    if len(widths) > 1 or not widths[0]:
        shown = ", ".join("none" if width is None else str(width) for width in widths[:5])
        raise UserError(f"{where}: the vectors have lengths {shown}: give all rows the same, at least 1.")
    with np.errstate(over="ignore"):  # what exceeds float32 becomes infinite
        number_N = pc.list_flatten(vectors).to_numpy().astype(np.float32)
    if not np.isfinite(number_N).all():
        raise UserError(f"{where}: a vector holds what is no finite number: mend or drop it.")
    return number_N.reshape(-1, widths[0])
