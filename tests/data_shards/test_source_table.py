"""A user's own files: every format gives the same tables, and bad input gives one sentence."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from recloom.data_shards.errors import UserError
from recloom.data_shards.sources.table import Settings, load
from recloom.data_shards.tables import Tables

COLUMNS = {"user": "reader", "item": "isbn", "rating": "stars", "timestamp": "when"}
GOOD = "reader,isbn,stars,when\n007,b1,4,30\n8,b1,5,10\n007,b2,3.5,20\n007,b3,1,20\n"


def settings_for(path: Path, columns: dict[str, str] | None = None, **data: Any) -> Settings:
    interactions = {"path": str(path), "columns": columns or COLUMNS}
    return Settings.model_validate({"name": "mine", "interactions": interactions, **data})


def load_text(tmp_path: Path, text: str, columns: dict[str, str] | None = None, **data: Any) -> Tables:
    path = tmp_path / "rows.csv"
    path.write_text(text, newline="")
    return load(settings_for(path, columns, **data), tmp_path / "cache")


def history(tables: Tables) -> list[tuple[str, str]]:
    users, items = tables.users["user_key"].to_pylist(), tables.items["item_key"].to_pylist()
    pairs = zip(tables.interactions["user"].to_pylist(), tables.interactions["item"].to_pylist(), strict=True)
    return [(users[user], items[item]) for user, item in pairs]


def test_csv_in_time_order_with_ids_as_text(tmp_path: Path) -> None:
    tables = load_text(tmp_path, GOOD)
    assert history(tables) == [("007", "b2"), ("007", "b3"), ("007", "b1"), ("8", "b1")]
    assert tables.interactions["rating"].to_pylist() == [3.5, 1.0, 4.0, 5.0]
    assert tables.interactions["timestamp"].to_pylist() == [20, 20, 30, 10]
    assert tables.titles == ["b1", "b2", "b3"], "without an items table the key is the title"


def test_formats_agree(tmp_path: Path) -> None:
    want = load_text(tmp_path, GOOD)
    rows = [dict(zip(COLUMNS.values(), line.split(","), strict=True)) for line in GOOD.splitlines()[1:]]
    typed = [{**row, "stars": float(row["stars"]), "when": int(row["when"])} for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, typed)) + "\n\n")
    pq.write_table(pa.Table.from_pylist(typed), tmp_path / "rows.parquet")
    (tmp_path / "rows.txt").write_text("\ufeff" + GOOD.replace(",", ";"), encoding="utf-8")
    assert load(settings_for(tmp_path / "rows.jsonl"), tmp_path) == want
    assert load(settings_for(tmp_path / "rows.parquet"), tmp_path) == want
    file = {"path": str(tmp_path / "rows.txt"), "columns": COLUMNS, "format": "csv", "separator": ";"}
    assert load(Settings.model_validate({"name": "mine", "interactions": file}), tmp_path) == want


def test_items_and_users_with_attributes(tmp_path: Path) -> None:
    items = [
        {"id": "b3", "name": "Three, or more", "tags": ["x", "y"]},
        {"id": "b9", "name": "never read", "tags": []},
        {"id": "b1", "name": None, "tags": ["z"]},
        {"id": "b2", "name": "2001-01-01"},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    (tmp_path / "users.csv").write_bytes("uid,city\n8,Köln\n007,\n".encode("latin-1"))
    tables = load_text(
        tmp_path,
        GOOD,
        items={
            "path": str(tmp_path / "items.jsonl"),
            "columns": {"item": "id", "title": "name"},
            "attributes": ["tags"],
        },
        users={
            "path": str(tmp_path / "users.csv"),
            "columns": {"user": "uid"},
            "attributes": ["city"],
            "encoding": "latin-1",
        },
    )
    assert tables.items.to_pydict() == {
        "item": [0, 1, 2],
        "item_key": ["b3", "b1", "b2"],
        "title": ["Three, or more", "b1", "2001-01-01"],
        "tags": ["x|y", "z", ""],
    }
    assert tables.users.to_pydict() == {"user": [0, 1], "user_key": ["8", "007"], "city": ["Köln", ""]}


def test_without_timestamp_the_file_order_is_the_history(tmp_path: Path) -> None:
    columns = {"user": "reader", "item": "isbn"}
    tables = load_text(tmp_path, GOOD, columns)
    assert history(tables) == [("007", "b1"), ("007", "b2"), ("007", "b3"), ("8", "b1")]
    assert not tables.has_ratings
    assert tables.interactions["timestamp"].to_pylist() == [0, 2, 3, 1]


def test_fractional_seconds_keep_their_order(tmp_path: Path) -> None:
    text = "reader,isbn,stars,when\n1,a,1,1600000000.75\n1,b,1,1600000000.25\n1,c,1,1.6e9\n"
    tables = load_text(tmp_path, text)
    assert history(tables) == [("1", "c"), ("1", "b"), ("1", "a")]
    assert tables.interactions["timestamp"].to_pylist()[1] == 1_600_000_000_250_000


def test_quoted_line_breaks_reviews_and_repeats_at_other_times(tmp_path: Path) -> None:
    text = 'reader,isbn,when,text\n1,a,1,"two\nlines, one comma"\n1,a,2,again\n'
    columns = {"user": "reader", "item": "isbn", "timestamp": "when", "review": "text"}
    tables = load_text(tmp_path, text, columns)
    assert tables.interactions["review"].to_pylist() == ["two\nlines, one comma", "again"]


def core_by_loops(pairs: list[tuple[str, str]], least: int) -> list[tuple[str, str]]:
    """Remove one offending row after the other; the k-core does not depend on the order."""
    pairs = list(pairs)
    while True:
        users, items = [user for user, _ in pairs], [item for _, item in pairs]
        bad = [(u, i) for u, i in pairs if users.count(u) < least or items.count(i) < least]
        if not bad:
            return pairs
        pairs.remove(bad[0])


def test_min_interactions_is_an_iterated_core(tmp_path: Path) -> None:
    full = [(f"u{user}", f"i{item}") for user in range(3) for item in range(3)]
    chain = [("u3", "i0"), ("u3", "i1"), ("u3", "i4"), ("u4", "i4"), ("u4", "i5")]
    pairs = [*chain, *full]
    text = "reader,isbn\n" + "".join(f"{user},{item}\n" for user, item in pairs)
    tables = load_text(tmp_path, text, {"user": "reader", "item": "isbn"}, min_interactions=3)
    assert sorted(history(tables)) == sorted(core_by_loops(pairs, 3)) == sorted(full)
    assert tables.num_items == 3
    with pytest.raises(UserError, match="data.min_interactions is 4, which leaves no interaction of mine"):
        load_text(tmp_path, text, {"user": "reader", "item": "isbn"}, min_interactions=4)


BAD = {
    "empty": ("", "the file is empty"),
    "header only": ("reader,isbn,stars,when\n", "the file has no rows"),
    "header without line end": ("reader,isbn,stars,when", "the file has no rows"),
    "blank lines": ("\n\n", "the file has no rows"),
    "missing column": (
        GOOD.replace("stars", "star"),
        r"no column 'stars' \(wanted as rating\), did you mean 'star'",
    ),
    "column twice": ("reader,isbn,stars,when,stars\n1,a,1,1,1\n", "the column 'stars' occurs twice"),
    "duplicate": (GOOD + "8,b1,2,10\n", "data rows 2 and 5 have the same user, item and timestamp .1 such"),
    "rating word": (GOOD.replace("3.5", "good"), "data row 3: rating is 'good', it must be a number"),
    "rating empty": (GOOD.replace("3.5", ""), "data row 3: rating is '', it must be a number"),
    "rating underscore": (GOOD.replace("3.5", "1_0"), "data row 3: rating is '1_0'"),
    "rating nan": (GOOD.replace("3.5", "nan"), "data row 3: rating is 'nan'"),
    "timestamp": (GOOD.replace("b1,5,10", "b1,5,2018-01-02"), "data row 2: timestamp is '2018-01-02'"),
    "timestamp empty": (GOOD.replace("b1,5,10", "b1,5,"), "data row 2: timestamp is ''"),
    "no user": (GOOD.replace("\n8,", "\n,"), "data row 2 has no user"),
    "no item": (GOOD.replace("b3", ""), "data row 4 has no item"),
    "ragged": (GOOD + "1,2\n", "cannot be read as csv .*Expected 4 columns, got 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_csv_gives_one_sentence_and_writes_nothing(tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        load_text(tmp_path, text)
    assert "\n" not in str(caught.value) and "rows.csv" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_duplicates_without_a_timestamp_column(tmp_path: Path) -> None:
    text = "reader,isbn\n1,a\n1,b\n2,a\n1,a\n1,a\n"
    with pytest.raises(
        UserError, match=r"data rows 1 and 4 have the same user and item, and no .*\(2 such rows\)"
    ):
        load_text(tmp_path, text, {"user": "reader", "item": "isbn"})


def test_other_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone.csv: no such file"):
        load(settings_for(tmp_path / "gone.csv"), tmp_path)
    (tmp_path / "rows.xlsx").write_text(GOOD)
    with pytest.raises(UserError, match="set format to csv, parquet or jsonl"):
        load(settings_for(tmp_path / "rows.xlsx"), tmp_path)
    (tmp_path / "rows.parquet").write_text(GOOD)
    with pytest.raises(UserError, match="cannot be read as parquet"):
        load(settings_for(tmp_path / "rows.parquet"), tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"reader": 1}\n{"reader": \n')
    with pytest.raises(UserError, match="line 2 is no JSON object"):
        load(settings_for(tmp_path / "rows.jsonl"), tmp_path)
    (tmp_path / "rows.csv").write_bytes(GOOD.replace("b3", "Köln").encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read as csv .*utf"):
        load(settings_for(tmp_path / "rows.csv"), tmp_path)


def test_interactions_must_name_known_items(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id\nb1\n")
    items = {"path": str(tmp_path / "items.csv"), "columns": {"item": "id"}}
    with pytest.raises(UserError, match="2 interactions name a key that the items table lacks, first 'b2'"):
        load_text(tmp_path, GOOD, items=items)
    (tmp_path / "items.csv").write_text("id\nb1\nb2\nb1\nb3\n")
    with pytest.raises(UserError, match="items.csv: data rows 1 and 3 have the same item"):
        load_text(tmp_path, GOOD, items=items)


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValidationError, match="interactions.columns.user"):
        settings_for(Path("x.csv"), {"item": "isbn", "usr": "reader"})
    items = {"path": "x.csv", "columns": {"item": "id"}, "attributes": ["title"]}
    with pytest.raises(ValidationError, match="must not repeat a name"):
        settings_for(Path("x.csv"), items=items)


def test_bookcrossing_reads_by_mapping(shared_data: Path) -> None:
    folder = shared_data / "bookcrossing-subset"
    columns = {"user": "User-ID", "item": "ISBN", "rating": "Book-Rating"}
    items = {
        "path": str(folder / "BX-Books.csv"),
        "columns": {"item": "ISBN", "title": "Book-Title"},
        "attributes": ["Book-Author", "Year-Of-Publication"],
    }
    tables = load(settings_for(folder / "BX-Ratings.csv", columns, items=items), Path("unused"))
    assert (tables.num_users, tables.num_items, tables.interactions.num_rows) == (48_299, 18_185, 204_164)
    core = load(
        settings_for(folder / "BX-Ratings.csv", columns, items=items, min_interactions=5), Path("unused")
    )
    rows = core.interactions
    for column in ("user", "item"):
        assert min(rows[column].value_counts().field("counts").to_pylist()) >= 5
