"""The dataset card beside the paper's row."""

from dataclasses import replace

import pyarrow as pa

from recloom.data_shards.cards import PAPER, PAPER_FEATURES, dataset_card, format_card
from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.tables import Tables, assemble_tables


def make_tables(name: str) -> Tables:
    """Two users x four items, all rated; the last rating of each is low."""
    keys = [(f"u{user}", f"i{item}") for user in range(2) for item in range(4)]
    interactions = pa.table(
        {
            "user_key": [user for user, _ in keys],
            "item_key": [item for _, item in keys],
            "rating": [5.0, 4.0, 4.0, 1.0] * 2,
            "timestamp": list(range(8)),
        }
    )
    items = pa.table({"item_key": [f"i{item}" for item in range(4)], "title": list("ABCD")})
    return assemble_tables(name, interactions, items, pa.table({"user_key": ["u0", "u1"]}))


def test_card_counts() -> None:
    tables = make_tables("mine")
    card = dataset_card(tables, leave_one_out(tables, 4.0))
    assert card["measured"] == {"users": 2, "items": 4, "interactions": 8, "density": 1.0}
    assert card["average_length"] == 4.0
    assert card["tasks"] == {
        "topk": {"train": 2, "valid": 2, "test": 2},
        "rating": {"train": 2, "valid": 2, "test": 2},
    }
    assert card["paper"] is None
    text = format_card(card)
    assert "has no row for this data set" in text and "paper  " not in text
    assert "topk    uses 6: train 2, valid 2, test 2" in text


def test_card_says_where_it_differs_from_the_paper() -> None:
    tables = make_tables("ML-100K")
    lines = format_card(dataset_card(tables, leave_one_out(tables, None))).splitlines()
    assert lines[1].split() == ["users", "2", "943"]
    assert lines[-1].strip() == (
        "Differs from Llama4Rec, Table 1: users 2 instead of 943, items 4 instead of 1,682, "
        "interactions 8 instead of 100,000, density 1.000000 instead of 0.063046."
    )


def test_paper_rows_are_consistent() -> None:
    for row in PAPER.values():
        density = row["interactions"] / (row["users"] * row["items"])
        assert abs(density - row["density"]) < 1e-6


def test_card_that_agrees() -> None:
    tables = make_tables("ML-1M")
    card = dataset_card(tables, leave_one_out(tables, 4.0))
    exact = {**PAPER["ML-1M"], "density": 1_000_209 / (6040 * 3706)}
    assert format_card({**card, "measured": exact}).endswith("Agrees with Llama4Rec, Table 1.")


def test_card_shows_the_features_beside_the_papers() -> None:
    tables = make_tables("BookCrossing")
    items = tables.items.append_column("author", pa.array(["a"] * 4))
    card = dataset_card(replace(tables, items=items), leave_one_out(tables, None))
    assert card["features"] == {"user": [], "item": ["title", "author"]}
    assert format_card(card).splitlines()[-6:-1] == [
        "  user features       here   none",
        "                      paper  Location, Age",
        "  item features       here   title, author",
        "                      paper  Title, Author, Year, Publisher",
        "  augmented features  paper  Book Genres, Page Length",
    ]
    assert PAPER_FEATURES.keys() == PAPER.keys()


def test_features_without_a_paper_row() -> None:
    tables = make_tables("mine")
    text = format_card(dataset_card(tables, leave_one_out(tables, None)))
    assert "item features       here   title\n" in text
    assert "paper  " not in text and "augmented" not in text
