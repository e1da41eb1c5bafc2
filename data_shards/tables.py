"""The data contract: three Arrow tables that every source ends in and everything after starts from.

    interactions   user int32, item int32, [rating float32], timestamp int64, [review], [summary]
                   sorted by (user, timestamp), ties in file order
    items          item int32 (= row number), item_key string, title string, attributes (string)
    users          user int32 (= row number), user_key string, attributes (string)

Ids are dense integers; the keys are the source's own ids. An attribute with several values joins them
by "|". Where a source has no times, the timestamp is the row's position in the file, or in the order that the
source gives the user's history.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recloom.data_shards.artifacts import MANIFEST, atomic_write_bytes, read_manifest, write_manifest
from recloom.data_shards.errors import UserError

PARTS = ("interactions", "items", "users")
REQUIRED = {
    "interactions": {"user": pa.int32(), "item": pa.int32(), "timestamp": pa.int64()},
    "items": {"item": pa.int32(), "item_key": pa.string(), "title": pa.string()},
    "users": {"user": pa.int32(), "user_key": pa.string()},
}
OPTIONAL = {"rating": pa.float32(), "review": pa.string(), "summary": pa.string()}


@dataclass(frozen=True)
class Tables:
    """One data set. `name` is the display name, as in the papers' tables ("ML-100K")."""

    name: str
    interactions: pa.Table
    items: pa.Table
    users: pa.Table

    @property
    def num_users(self) -> int:
        return int(self.users.num_rows)

    @property
    def num_items(self) -> int:
        return int(self.items.num_rows)

    @property
    def has_ratings(self) -> bool:
        return "rating" in self.interactions.column_names

    @property
    def titles(self) -> list[str]:
        """The title of every item, in the order of the item ids."""
        return [str(title) for title in self.items["title"].to_pylist()]

    def save(self, folder: Path) -> None:
        """Write one Parquet file a table into `folder`, then its manifest."""
        (folder / MANIFEST).unlink(missing_ok=True)
        for part in PARTS:
            buffer = io.BytesIO()
            pq.write_table(getattr(self, part), buffer, compression="zstd")
            atomic_write_bytes(folder / f"{part}.parquet", buffer.getvalue())
        write_manifest(folder, kind="tables", name=self.name)

    @classmethod
    def load(cls, folder: Path) -> Tables:
        """Read what `save` wrote; raises UserError that names a missing or damaged file."""
        manifest = read_manifest(folder, verify=True)
        if manifest.get("kind") != "tables":
            raise UserError(f"{folder}: the folder holds no tables: name a folder that prepare wrote.")
        parts = {part: pq.read_table(folder / f"{part}.parquet") for part in PARTS}
        return cls(name=manifest["name"], **parts)

    def validate(self) -> None:
        """Check columns, types, nulls, dense ids, references and order; raises UserError."""
        for part in PARTS:
            check_columns(self.name, part, getattr(self, part))
        check_ids(self.name, "items", self.items, "item")
        check_ids(self.name, "users", self.users, "user")
        check_references(self)
        check_order(self)


def check_columns(name: str, part: str, table: pa.Table) -> None:
    """Required columns are there, of their type; no table is empty; only attributes may be null."""
    required = REQUIRED[part]
    missing = [column for column in required if column not in table.column_names]
    if missing:
        raise UserError(f"{name}: table {part} has no column {missing[0]}: the source must give it.")
    others = OPTIONAL if part == "interactions" else {}
    for field in table.schema:
        want = required.get(field.name) or others.get(field.name, pa.string())
        if field.type != want:
            raise UserError(f"{name}: {part}.{field.name} is {field.type}, it must be {want}.")
        if (field.name in required or field.name == "rating") and table[field.name].null_count:
            raise UserError(f"{name}: {part}.{field.name} holds nulls: the source must fill or drop them.")
    if table.num_rows == 0:
        raise UserError(f"{name}: table {part} has no rows: check the source's files and filters.")


def check_ids(name: str, part: str, table: pa.Table, column: str) -> None:
    """Ids are the row numbers, keys are unique."""
    if not np.array_equal(table[column].to_numpy(), np.arange(table.num_rows)):
        raise UserError(f"{name}: {part}.{column} must count 0, 1, 2, ... in row order.")
    if pc.count_distinct(table[f"{column}_key"]).as_py() != table.num_rows:
        raise UserError(f"{name}: {part}.{column}_key holds a key twice: keys must be unique.")


def check_references(tables: Tables) -> None:
    """Every interaction names a user and an item that exist, and its rating is a number."""
    for column, count in (("user", tables.num_users), ("item", tables.num_items)):
        id_N = tables.interactions[column].to_numpy()
        if id_N.min() < 0 or id_N.max() >= count:
            raise UserError(f"{tables.name}: interactions.{column} must lie in 0..{count - 1}.")
    if tables.has_ratings and not np.isfinite(tables.interactions["rating"].to_numpy()).all():
        raise UserError(f"{tables.name}: interactions.rating must be finite numbers.")


def check_order(tables: Tables) -> None:
    """Rows are sorted by user, then timestamp."""
    user_N = tables.interactions["user"].to_numpy().astype(np.int64)
    time_N = tables.interactions["timestamp"].to_numpy()
    later = (user_N[1:] > user_N[:-1]) | ((user_N[1:] == user_N[:-1]) & (time_N[1:] >= time_N[:-1]))
    if not later.all():
        raise UserError(f"{tables.name}: interactions must be sorted by user, then timestamp.")


def assemble_tables(name: str, interactions: pa.Table, items: pa.Table, users: pa.Table) -> Tables:
    """Make dense ids, sort, and drop the items and users that no interaction names.

    interactions: user_key, item_key, timestamp and the optional columns, in file order;
    items: item_key, title, attributes; users: user_key, attributes. Ids follow the row order of
    `items` and `users`. Raises UserError when these lack a key that the interactions name.
    """
    item_N, items = dense_ids(name, interactions, items, "item")
    user_N, users = dense_ids(name, interactions, users, "user")
    columns = {"user": pa.array(user_N, pa.int32()), "item": pa.array(item_N, pa.int32())}
    for column in ("rating", "timestamp", "review", "summary"):
        kind = OPTIONAL.get(column, pa.int64())
        if column in interactions.column_names:
            columns[column] = interactions[column].cast(kind)
    order_N = np.lexsort((interactions["timestamp"].to_numpy(), user_N))
    rows = pa.table(columns).take(pa.array(order_N)).combine_chunks()
    tables = Tables(name, rows, items, users)
    tables.validate()
    return tables


def dense_ids(name: str, interactions: pa.Table, table: pa.Table, column: str) -> tuple[np.ndarray, pa.Table]:
    """The dense id of every interaction, and the table cut to the keys that occur, with its id column."""
    key_N = interactions[f"{column}_key"]
    check_keys(name, key_N, table[f"{column}_key"], column)
    kept = table.filter(pc.is_in(table[f"{column}_key"], value_set=key_N.unique())).combine_chunks()
    id_N = pc.index_in(key_N, value_set=kept[f"{column}_key"].combine_chunks())
    ids = pa.array(np.arange(kept.num_rows), pa.int32())
    return id_N.to_numpy(), kept.add_column(0, column, ids)


def check_keys(name: str, key_N: pa.ChunkedArray, known: pa.ChunkedArray, column: str) -> None:
    """Every key that the interactions name is known to the table of items or users."""
    lost = key_N.filter(pc.invert(pc.is_in(key_N, value_set=known.combine_chunks())))
    if len(lost):
        raise UserError(
            f"{name}: {len(lost)} interactions name a key that the {column}s table lacks, first "
            f"{lost[0].as_py()!r}: add the {column} to the {column}s table or drop the interactions."
        )
