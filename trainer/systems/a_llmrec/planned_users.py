"""How many users A-LLMRec learns from, as far as a plan can know, and how many questions that makes."""

from __future__ import annotations

from dataclasses import replace

from recloom.data_shards.scenarios import FEW_SHOT
from recloom.trainer.planning.users import HELD_OUT, DataSize, data_size
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig


def num_questions(config: ALLMRecConfig, learned: DataSize) -> int:
    """One a user, or one a training item but the first; times `draws`."""
    each = 1.0 if config.project.targets == "last" else learned.length - HELD_OUT
    return max(1, int(learned.users * each)) * config.project.draws


def learned_users(config: ALLMRecConfig) -> DataSize:
    """Those of the data set, or the fewer that the config asks for."""
    found = data_size(config)
    few_shot = FEW_SHOT.fullmatch(config.scenario.name)
    limits = [
        (int(few_shot[1]) if few_shot else None, "scenario.name"),
        (config.project.users, "project.users"),
    ]
    for users, origin in limits:
        if users is not None and users < found.users:
            found = replace(found, users=users, origin=origin)
    return found
