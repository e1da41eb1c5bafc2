"""The dataset card: what a data set holds, beside the paper's own row (Llama4Rec, Table 1, or another's)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from recloom.data_shards.splits import Splits
from recloom.data_shards.tables import Tables

PAPER_TABLE = "Llama4Rec, Table 1"
PAPER: dict[str, dict[str, float]] = {
    "ML-100K": {"users": 943, "items": 1682, "interactions": 100_000, "density": 0.063046},
    "ML-1M": {"users": 6040, "items": 3706, "interactions": 1_000_209, "density": 0.044683},
    "BookCrossing": {"users": 6851, "items": 9085, "interactions": 115_219, "density": 0.001851},
}
PAPER_FEATURES: dict[str, dict[str, list[str]]] = {
    "ML-100K": {
        "user": ["Gender", "ZipCode", "Occupation", "Age"],
        "item": ["Title", "Genres", "Year"],
        "augmented": ["Movie Director", "Movie Star"],
    },
    "ML-1M": {
        "user": ["Gender", "ZipCode", "Occupation", "Age"],
        "item": ["Title", "Genres"],
        "augmented": ["Movie Director", "Movie Star"],
    },
    "BookCrossing": {
        "user": ["Location", "Age"],
        "item": ["Title", "Author", "Year", "Publisher"],
        "augmented": ["Book Genres", "Page Length"],
    },
}
# The other papers print no density: here their counts give it. A-LLMRec's Beauty is Luxury_Beauty, its Toys
# are Toys_and_Games, both of 2018. The text of Laser that is at hand lacks the numbers of its Table 1.
A_LLMREC, RECSYSLLM = "A-LLMRec, Table 10", "RecSysLLM, section on the set-up"
AMAZON = {
    "Amazon 2018 Movies and TV": (A_LLMREC, 297_498, 59_944, 3_409_147),
    "Amazon 2018 Video Games": (A_LLMREC, 64_073, 33_614, 598_509),
    "Amazon 2018 Luxury Beauty": (A_LLMREC, 9_930, 6_141, 63_953),
    "Amazon 2018 Toys and Games": (A_LLMREC, 30_831, 61_081, 282_213),
    "Amazon 2014 Sports and Outdoors": (RECSYSLLM, 35_598, 18_357, 296_337),
    "Amazon 2014 Beauty": (RECSYSLLM, 22_363, 12_101, 198_502),
    "Amazon 2014 Toys and Games": (RECSYSLLM, 19_412, 11_924, 167_597),
}
AMAZON_FEATURES = {A_LLMREC: ["Title", "Description"], RECSYSLLM: ["Title"]}
PAPER |= {
    name: {"users": users, "items": items, "interactions": rows, "density": rows / (users * items)}
    for name, (_, users, items, rows) in AMAZON.items()
}
PAPER_FEATURES |= {name: {"user": [], "item": AMAZON_FEATURES[row[0]]} for name, row in AMAZON.items()}
NOTES = b"notes"  # of the interactions' schema, which Parquet files keep
DENSITY_STEP = 1e-6  # the paper cuts its densities at six places


def dataset_card(tables: Tables, splits: Splits) -> dict[str, Any]:
    """Counts as plain numbers, ready for JSON.

    `measured` and `paper` (None for a data set that the paper does not use) share their keys;
    density = interactions / (users * items). `tasks` counts the interactions of each part. `features` are
    the columns of users and items, `paper_features` the paper's, with those that its LLM adds (augmented).
    `paper_table` says where the paper prints its row, `notes` what the source tells with `with_notes`.
    """
    rows, users, items = tables.interactions.num_rows, tables.num_users, tables.num_items
    tasks = {
        task: {part: len(getattr(split, part)) for part in ("train", "valid", "test")}
        for task, split in (("topk", splits.topk), ("rating", splits.rating))
    }
    measured = {"users": users, "items": items, "interactions": rows, "density": rows / (users * items)}
    return {
        "name": tables.name,
        "measured": measured,
        "average_length": rows / users,
        "tasks": tasks,
        "paper": PAPER.get(tables.name),
        "paper_table": AMAZON[tables.name][0] if tables.name in AMAZON else PAPER_TABLE,
        "features": {"user": tables.users.column_names[2:], "item": tables.items.column_names[2:]},
        "paper_features": PAPER_FEATURES.get(tables.name),
        "notes": json.loads((tables.interactions.schema.metadata or {}).get(NOTES, b"[]")),
    }


def with_notes(tables: Tables, notes: list[str]) -> Tables:
    """The tables with sentences for their card, about what a source did to the data."""
    metadata = {NOTES: json.dumps(notes).encode()}
    return replace(tables, interactions=tables.interactions.replace_schema_metadata(metadata))


def format_card(card: dict[str, Any]) -> str:
    """The card as aligned text, with one line that says where it differs from the paper."""
    measured, paper = card["measured"], card["paper"]
    width = max(20, len(card["name"]) - 9)
    head = f"{card['name']:<{width + 2}}{'here':>12}"
    lines = [head + (f"{'paper':>12}" if paper else "")]
    for field, value in measured.items():
        line = f"  {field:<{width}}{number(value):>12}"
        lines.append(line + (f"{number(paper[field]):>12}" if paper else ""))
    lines.append(f"  {'interactions a user':<{width}}{card['average_length']:>12.2f}")
    for task, parts in card["tasks"].items():
        counts = ", ".join(f"{part} {count:,}" for part, count in parts.items())
        lines.append(f"  {task:<8}uses {sum(parts.values()):,}: {counts}")
    lines += feature_lines(card["features"], card["paper_features"] or {})
    lines += [f"  {note}" for note in card["notes"]]
    return "\n".join([*lines, f"  {difference(measured, paper, card['paper_table'])}"])


def feature_lines(here: dict[str, list[str]], paper: dict[str, list[str]]) -> list[str]:
    """The columns of users and items, the paper's in the next line; augmented ones come after the card."""
    lines = []
    for kind in ("user", "item", "augmented"):
        if kind in here:
            lines.append(f"  {kind + ' features':<20}here   {', '.join(here[kind]) or 'none'}")
        if kind in paper:
            label = "" if kind in here else f"{kind} features"
            lines.append(f"  {label:<20}paper  {', '.join(paper[kind]) or 'none'}")
    return lines


def number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6f}"


def difference(measured: dict[str, float], paper: dict[str, float] | None, table: str = PAPER_TABLE) -> str:
    """One sentence on where the data set and the paper's row part."""
    if paper is None:
        return f"{table} has no row for this data set."
    parted = [
        f"{field} {number(measured[field])} instead of {number(value)}"
        for field, value in paper.items()
        if abs(measured[field] - value) >= (DENSITY_STEP if field == "density" else 0.5)
    ]
    if not parted:
        return f"Agrees with {table}."
    return f"Differs from {table}: {', '.join(parted)}."
