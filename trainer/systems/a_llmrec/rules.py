"""What A-LLMRec's settings must hold together (see trainer/config_rules.py)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from recloom.trainer.config_rules import Rule

if TYPE_CHECKING:
    from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig

LEARNED_FROM = re.compile(r"overall|cold_users|few_shot_[1-9]\d*|cross_domain")


def one_backbone(config: ALLMRecConfig) -> str | None:
    tasks = config.backbones.tasks
    if tasks in (["direct"], ["sequential"]):
        return None
    return f"backbones: {', '.join(tasks) or 'none'} named, A-LLMRec stands on one, name direct or sequential"


def known_scenario(config: ALLMRecConfig) -> str | None:
    if LEARNED_FROM.fullmatch(config.scenario.name):
        return None
    return (
        f"scenario.name = '{config.scenario.name}': no such scenario, choose overall (which "
        "reports warm and cold too), cold_users, few_shot_K or cross_domain"
    )


def trained_elsewhere(config: ALLMRecConfig) -> str | None:
    is_cross, trained = config.scenario.name == "cross_domain", config.scenario.trained
    if is_cross and trained is None:
        return "scenario.trained: empty, cross_domain asks another run's models, name its folder"
    if not is_cross and trained is not None:
        return f"scenario.trained = '{trained}': only cross_domain takes it, remove it"
    return None


def methods_differ(config: ALLMRecConfig) -> str | None:
    if len(set(config.methods)) == len(config.methods):
        return None
    return f"methods = {list(config.methods)}: one is there twice, remove it"


def engine_serves(config: ALLMRecConfig) -> str | None:
    if config.rank.engine == "hf" or "tallrec" not in config.methods:
        return None
    return "rank.engine = 'vllm': the adapters of tallrec run in Hugging Face only, set it to hf"


def something_soft(config: ALLMRecConfig) -> str | None:
    trains = {"mlp_llm", "a_llmrec"} & set(config.methods)
    if config.project.user_vector or config.project.item_vectors != "none" or not trains:
        return None
    return (
        "project.user_vector = False: nothing is left to train with item_vectors = 'none', change one of them"
    )


def genres_need_vectors(config: ALLMRecConfig) -> str | None:
    if config.genres is None or "a_llmrec" in config.methods:
        return None
    return "genres: A-LLMRec is asked beside the LLM alone, but methods does not name a_llmrec, add it"


def text_carries_over(config: ALLMRecConfig) -> str | None:
    if config.scenario.name != "cross_domain":
        return None
    if "mlp_llm" in config.methods:
        return "methods: mlp_llm has no vectors of another data set's items, remove it for cross_domain"
    if config.scenario.full_catalogue:
        return "scenario.full_catalogue = True: no backbone ranks another data set's items, set it to false"
    return None


RULES = (
    Rule(("backbones",), one_backbone),
    Rule(("scenario.name",), known_scenario),
    Rule(("scenario.trained", "scenario.name"), trained_elsewhere),
    Rule(("methods",), methods_differ),
    Rule(("rank.engine", "methods"), engine_serves),
    Rule(("project.user_vector", "project.item_vectors", "methods"), something_soft),
    Rule(("genres", "methods"), genres_need_vectors),
    Rule(("scenario", "methods"), text_carries_over),
)
