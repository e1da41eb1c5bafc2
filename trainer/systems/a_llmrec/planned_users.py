"""How many users A-LLMRec learns from, as far as a plan can know, and how many questions that makes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from recloom.data_shards.cards import AMAZON, PAPER, PAPER_TABLE
from recloom.data_shards.scenarios import FEW_SHOT
from recloom.data_shards.sources.amazon import category_of
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig

MOVIELENS = {"100k": "ML-100K", "1m": "ML-1M"}
ASSUMED, ASSUMED_LENGTH = 10_000, 10.0
HELD_OUT = 3  # of a user's interactions: test, validation, and the first, which is never asked for


@dataclass(frozen=True)
class Learned:
    """Users learned from, and the mean length of their sequences; `origin` says where it is from."""

    users: int
    length: float
    origin: str


def num_questions(config: ALLMRecConfig, learned: Learned) -> int:
    """One a user, or one a training item but the first; times `draws`."""
    each = 1.0 if config.project.targets == "last" else learned.length - HELD_OUT
    return max(1, int(learned.users * each)) * config.project.draws


def learned_users(config: ALLMRecConfig) -> Learned:
    """Those of the data set, or the fewer that the config asks for."""
    found = all_users(config)
    few_shot = FEW_SHOT.fullmatch(config.scenario.name)
    limits = [
        (int(few_shot[1]) if few_shot else None, "scenario.name"),
        (config.project.users, "project.users"),
    ]
    for users, origin in limits:
        if users is not None and users < found.users:
            found = Learned(users, found.length, origin)
    return found


def all_users(config: ALLMRecConfig) -> Learned:
    """From the card of data that are prepared, else from a paper's table, else assumed."""
    for folder in (config.folder, *(config.folder / f"seed_{seed}" for seed in config.seeds)):
        card = folder / "data" / "card.json"
        if card.is_file():
            told = json.loads(card.read_text())["measured"]
            return Learned(told["users"], told["interactions"] / told["users"], f"counted in {card}")
    name = data_name(config)
    if name in PAPER:
        paper, table = PAPER[name], AMAZON[name][0] if name in AMAZON else PAPER_TABLE
        users = int(paper["users"])
        return Learned(users, paper["interactions"] / users, f"{table}; what is prepared may differ")
    return Learned(ASSUMED, ASSUMED_LENGTH, "assumed, the data are not read here; work grows with them")


def data_name(config: ALLMRecConfig) -> str:
    """The name that the source will give the data, where the YAML tells it."""
    data = config.data
    if data.source.startswith("amazon") and data.reviews:
        category = category_of(Path(data.reviews)).replace("_", " ")
        return f"Amazon {data.source.removeprefix('amazon')} {category}"
    if data.source == "movielens":
        return MOVIELENS[data.variant]
    return getattr(data, "name", None) or ""
