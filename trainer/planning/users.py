"""How large a config's data are, as far as a plan can know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from recloom.data_shards.cards import AMAZON, PAPER, PAPER_TABLE
from recloom.data_shards.sources.amazon import category_of
from recloom.trainer.config import RunConfig

MOVIELENS = {"100k": "ML-100K", "1m": "ML-1M"}
ASSUMED, ASSUMED_LENGTH = 10_000, 10.0
HELD_OUT = 3  # of a user's interactions: test, validation, and one that is no target or no history


@dataclass(frozen=True)
class DataSize:
    """Users, the mean length of their sequences, items; `origin` says where the numbers are from."""

    users: int
    items: int
    length: float
    origin: str


def data_size(config: RunConfig) -> DataSize:
    """From the card of data that are prepared, else from a paper's table, else assumed."""
    for folder in (config.folder, *(config.folder / f"seed_{seed}" for seed in config.seeds)):
        card = folder / "data" / "card.json"
        if card.is_file():
            return make_size(json.loads(card.read_text())["measured"], f"counted in {card}")
    name = data_name(config)
    if name in PAPER:
        table = AMAZON[name][0] if name in AMAZON else PAPER_TABLE
        return make_size(PAPER[name], f"{table}; what is prepared may differ")
    return DataSize(
        ASSUMED, ASSUMED, ASSUMED_LENGTH, "assumed, the data are not read here; work grows with them"
    )


def make_size(counts: dict[str, float], origin: str) -> DataSize:
    users = int(counts["users"])
    return DataSize(users, int(counts["items"]), counts["interactions"] / users, origin)


def data_name(config: RunConfig) -> str:
    """The name that the source will give the data, where the YAML tells it."""
    data = config.data
    if data.source.startswith("amazon") and data.reviews:
        category = category_of(Path(data.reviews)).replace("_", " ")
        return f"Amazon {data.source.removeprefix('amazon')} {category}"
    if data.source == "movielens":
        return MOVIELENS[data.variant]
    return getattr(data, "name", None) or ""


def recommender_width(config: RunConfig) -> int:
    """Of the one backbone's vectors; twice the setting where GMF and an MLP have a table each (NCF)."""
    backbone = getattr(config.backbones, config.backbones.tasks[0])
    width: int = backbone.embedding
    return 2 * width if backbone.model == "ncf" else width
