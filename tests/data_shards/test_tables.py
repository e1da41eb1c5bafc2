"""The three tables: assembly, round trip through the disk, validation."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recloom.data_shards.errors import UserError
from recloom.data_shards.tables import Tables, assemble_tables


def small_tables() -> Tables:
    interactions = pa.table(
        {
            "user_key": ["u7", "u1", "u7", "u1", "u7"],
            "item_key": ["b", "a", "a", "c", "c"],
            "rating": [4.0, 5.0, 1.0, 2.5, 3.0],
            "timestamp": [30, 9, 10, 9, 10],
            "review": ["0", "1", "2", "3", "4"],
        }
    )
    items = pa.table(
        {"item_key": ["c", "x", "b", "a"], "title": ["C", "X", "B", "A"], "genres": list("1234")}
    )
    return assemble_tables("small", interactions, items, pa.table({"user_key": ["u1", "u7", "u9"]}))


def replaced(tables: Tables, part: str, column: str, values: pa.Array) -> Tables:
    table = getattr(tables, part)
    table = table.set_column(table.column_names.index(column), column, values)
    return dataclasses.replace(tables, **{part: table})


def test_assembly_makes_dense_ids_in_time_order() -> None:
    tables = small_tables()
    assert tables.items.to_pydict() == {
        "item": [0, 1, 2],
        "item_key": ["c", "b", "a"],
        "title": ["C", "B", "A"],
        "genres": ["1", "3", "4"],
    }
    assert tables.users.to_pydict() == {"user": [0, 1], "user_key": ["u1", "u7"]}
    assert tables.interactions.to_pydict() == {
        "user": [0, 0, 1, 1, 1],
        "item": [2, 0, 2, 0, 1],
        "rating": [5.0, 2.5, 1.0, 3.0, 4.0],
        "timestamp": [9, 9, 10, 10, 30],
        "review": ["1", "3", "2", "4", "0"],
    }
    assert (tables.num_users, tables.num_items, tables.has_ratings) == (2, 3, True)
    assert tables.titles == ["C", "B", "A"]


def test_unknown_key_is_counted_and_named() -> None:
    interactions = pa.table({"user_key": ["u", "u"], "item_key": ["a", "z"], "timestamp": [1, 2]})
    items = pa.table({"item_key": ["a"], "title": ["A"]})
    with pytest.raises(UserError, match="1 interactions name a key that the items table lacks, first 'z'"):
        assemble_tables("t", interactions, items, pa.table({"user_key": ["u"]}))


def test_save_and_load_are_inverse(tmp_path: Path) -> None:
    tables = small_tables()
    tables.save(tmp_path / "tables")
    assert Tables.load(tmp_path / "tables") == tables
    tables.save(tmp_path / "tables")
    assert Tables.load(tmp_path / "tables").interactions.schema == tables.interactions.schema


@pytest.mark.parametrize("part", ["interactions", "items", "users"])
def test_load_names_the_damaged_file(tmp_path: Path, part: str) -> None:
    small_tables().save(tmp_path)
    path = tmp_path / f"{part}.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{part}.parquet"):
        Tables.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=f"{part}.parquet"):
        Tables.load(tmp_path)


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_interrupted_save_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    """An older whole folder is overwritten, and the write stops after `cut` files."""
    import recloom.data_shards.tables as module

    tables = small_tables()
    tables.save(tmp_path)
    write, calls = module.atomic_write_bytes, itertools.count()

    def stop_after(path: Path, data: bytes) -> None:
        if next(calls) == cut:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(module, "atomic_write_bytes", stop_after)
    with pytest.raises(KeyboardInterrupt):
        dataclasses.replace(tables, name="new").save(tmp_path)
    with pytest.raises(UserError, match="incomplete"):
        Tables.load(tmp_path)


@pytest.mark.parametrize(
    ("part", "column", "values", "message"),
    [
        ("interactions", "item", pa.array([0, 1, 2, 3, 0], pa.int32()), "interactions.item must lie in 0..2"),
        (
            "interactions",
            "user",
            pa.array([0, 0, -1, 1, 1], pa.int32()),
            "interactions.user must lie in 0..1",
        ),
        ("interactions", "user", pa.array([0, 1, 0, 1, 1], pa.int32()), "sorted by user, then timestamp"),
        ("interactions", "timestamp", pa.array([9, 8, 1, 2, 3]), "sorted by user, then timestamp"),
        ("interactions", "timestamp", pa.array([9, None, 1, 2, 3]), "timestamp holds nulls"),
        ("interactions", "user", pa.array([0, 0, 1, 1, 1]), "interactions.user is int64, it must be int32"),
        ("interactions", "rating", pa.array([1, 2, np.nan, 3, 4], pa.float32()), "finite"),
        ("items", "item", pa.array([0, 2, 1], pa.int32()), r"items.item must count 0, 1, 2"),
        ("items", "item_key", pa.array(["a", "a", "b"]), "item_key holds a key twice"),
        ("items", "title", pa.array(["a", None, "b"]), "items.title holds nulls"),
        ("users", "user_key", pa.array(["u", "u"]), "user_key holds a key twice"),
    ],
)
def test_validate_names_the_rule(part: str, column: str, values: pa.Array, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replaced(small_tables(), part, column, values).validate()


def test_validate_finds_missing_column_and_empty_table() -> None:
    tables = small_tables()
    with pytest.raises(UserError, match="table items has no column title"):
        dataclasses.replace(tables, items=tables.items.drop_columns("title")).validate()
    with pytest.raises(UserError, match="table users has no rows"):
        dataclasses.replace(tables, users=tables.users.slice(0, 0)).validate()
