"""A small shop whose every review and summary says which row it is of, and a run over it.

Users buy 2 to 9 things, none twice. Row p of user u is spoken of as noteUxP; the titles are Item-00, ...
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recloom.data_shards.tables import Tables, assemble_tables
from recloom.trainer.config_io import build_config
from recloom.trainer.stages import Run
from recloom.trainer.systems.recsysllm.settings import RecSysLLMConfig

NUM_USERS, NUM_ITEMS, DAY = 16, 28, 86_400
NOTE, TITLE = re.compile(r"note(\d+)x(\d+)"), re.compile(r"Item-(\d\d)")
WORDS = ("soap", "brush", "cream", "lamp")
Row = dict[str, Any]


def user_rows() -> list[list[Row]]:
    """Every user's rows in time order; a few lack a review or a summary, one user has two rows only."""
    rng = np.random.default_rng(8)
    shop = []
    for user in range(NUM_USERS):
        items = rng.choice(NUM_ITEMS, 2 if user == 5 else int(rng.integers(4, 10)), replace=False)
        times = np.sort(rng.integers(0, 400, len(items))) * DAY
        pairs = zip(items.tolist(), times.tolist(), strict=True)
        shop.append([row_of(user, place, *pair, rng) for place, pair in enumerate(pairs)])
    return shop


def row_of(user: int, place: int, item: int, time: int, rng: np.random.Generator) -> Row:
    note = f"note{user}x{place}"
    return {
        "user_key": f"u{user:02}",
        "item_key": f"i{item:02}",
        "rating": float(rng.integers(1, 6)),
        "timestamp": time,
        "review": f"Bought {note}. This {WORDS[item % 4]} is my {note}." if rng.random() < 0.9 else None,
        "summary": f"In short {note}" if rng.random() < 0.85 else None,
    }


def tables_of(shop: Sequence[Sequence[Row]], *, without: Sequence[str] = ()) -> Tables:
    """without: columns that the source does not have."""
    rows = pa.Table.from_pylist([row for rows in shop for row in rows]).drop_columns(list(without))
    items = {
        "item_key": [f"i{item:02}" for item in range(NUM_ITEMS)],
        "title": [f"Item-{item:02}" for item in range(NUM_ITEMS)],
        "category": [f"{WORDS[item % 4].title()}s|Home" for item in range(NUM_ITEMS)],
        "description": [f"described {item}" for item in range(NUM_ITEMS)],
    }
    users = {
        "user_key": [f"u{user:02}" for user in range(NUM_USERS)],
        "age": [f"{20 + user}" for user in range(NUM_USERS)],
    }
    return assemble_tables("shop", rows, pa.table(items), pa.table(users))


def shop_run(folder: Path, model: str | Path, tables: Tables, **blocks: Any) -> Run[RecSysLLMConfig]:
    """A run whose data are prepared. blocks: top-level settings."""
    raw: dict[str, Any] = {
        "name": "shop",
        "system": "recsysllm",
        "seed": 3,
        "data": {"source": "movielens", "variant": "100k"},
        "model": {"path": str(model), "dtype": "float32"},
        "evaluate": {"ks": [1, 3]},
    }
    raw["corpus"] = {"negatives": 6} | blocks.pop("corpus", {})
    config = build_config(raw | blocks, "test")
    assert isinstance(config, RecSysLLMConfig)
    tables.save(folder / "data/tables")
    return Run(config, folder, folder / "cache")
