"""Texts of items: both styles, which columns, what is left out, refusals."""

from __future__ import annotations

import pyarrow as pa
import pytest

from recloom.data_shards.errors import UserError
from recloom.data_shards.tables import Tables
from recloom.trainer.item_texts import item_texts

TITLES = ["Heat (1995)", "Das  Boot\n(1981) ", "A|B"]
GENRES = ["Crime|Drama", "", None]


def tables_with(**attributes: list[str | None]) -> Tables:
    """Three items, each with one interaction."""
    rows = pa.table({"user": pa.array([0, 0, 0], pa.int32()), "item": pa.array([0, 1, 2], pa.int32())})
    rows = rows.append_column("timestamp", pa.array([1, 2, 3], pa.int64()))
    texts = {"item_key": ["a", "b", "c"], "title": TITLES, **attributes}
    columns = {name: pa.array(values, pa.string()) for name, values in texts.items()}
    items = pa.table({"item": pa.array([0, 1, 2], pa.int32()), **columns})
    users = pa.table({"user": pa.array([0], pa.int32()), "user_key": ["u"]})
    tables = Tables("Three", rows, items, users)
    tables.validate()
    return tables


def test_both_styles_on_one_line() -> None:
    tables = tables_with(description=["  Two\nmen.  ", "A crew, \t a boat.", "x | | y"])
    assert item_texts(tables, "labelled") == [
        "Title: Heat (1995), Description: Two men.",
        "Title: Das Boot (1981), Description: A crew, a boat.",
        "Title: A|B, Description: x, y",
    ]
    assert item_texts(tables, "plain")[0] == "Heat (1995), Two men."


def test_several_values_and_what_is_missing() -> None:
    tables = tables_with(genres=GENRES, year=["1995", None, "2000"])
    assert item_texts(tables, "labelled") == [
        "Title: Heat (1995), Genres: Crime, Drama, Year: 1995",
        "Title: Das Boot (1981)",
        "Title: A|B, Year: 2000",
    ]
    assert item_texts(tables, "plain") == ["Heat (1995), Crime, Drama, 1995", "Das Boot (1981)", "A|B, 2000"]


def test_the_description_stands_alone_unless_others_are_asked_for() -> None:
    tables = tables_with(genres=GENRES, description=["d", "e", "f"], madeIn=["US", "DE", ""])
    assert item_texts(tables, "plain") == ["Heat (1995), d", "Das Boot (1981), e", "A|B, f"]
    chosen = item_texts(tables, "labelled", ["madeIn", "genres"])
    assert chosen[:2] == [
        "Title: Heat (1995), MadeIn: US, Genres: Crime, Drama",
        "Title: Das Boot (1981), MadeIn: DE",
    ]
    assert item_texts(tables, "plain", []) == ["Heat (1995)", "Das Boot (1981)", "A|B"]


@pytest.mark.parametrize("unknown", ["colour", "title", "item_key", "item"])
def test_an_unknown_attribute_is_refused(unknown: str) -> None:
    tables = tables_with(genres=GENRES, year=["1995", None, "2000"])
    message = f"item_text.attributes = \\['year', '{unknown}'\\]: '{unknown}' .* choose from genres, year\\."
    with pytest.raises(UserError, match=message):
        item_texts(tables, "plain", ["year", unknown])
    with pytest.raises(UserError, match="the items have none"):
        item_texts(tables_with(), "plain", [unknown])


def test_items_without_attributes_are_their_titles() -> None:
    assert item_texts(tables_with(), "labelled")[0] == "Title: Heat (1995)"
