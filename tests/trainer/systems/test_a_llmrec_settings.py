"""The YAML of A-LLMRec through the real parser: its profile, its rules, what it shares."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from yaml_settings import read_as, sentences

from recloom.trainer.config_io import build_config, config_dict, dump_config, parse_yaml
from recloom.trainer.config_schema import schema_for
from recloom.trainer.systems.a_llmrec.alignment import PROFILES
from recloom.trainer.systems.a_llmrec.settings import STAGE_2, TEXT_STYLE, ALLMRecConfig
from recloom.trainer.systems.registry import config_class, system_names

PLAIN: dict[str, Any] = {
    "name": "try",
    "system": "a_llmrec",
    "data": {"source": "movielens", "variant": "100k"},
    "model": {"path": "smollm2-135m-instruct"},
    "backbones": {"sequential": {"model": "sasrec"}},
}


def read(**changes: Any) -> ALLMRecConfig:
    """PLAIN with these top-level settings in place of its own, by way of YAML text."""
    return read_as(ALLMRecConfig, PLAIN | changes)


def problems(**changes: Any) -> list[str]:
    """The sentences of a refused config."""
    return sentences(lambda: read(**changes))


def test_every_system_with_settings_is_known_by_its_name() -> None:
    assert {"a_llmrec", "llama4rec"} <= set(system_names())
    for name in system_names():
        assert config_class(name).model_fields["system"].annotation is not str
    assert config_class("a_llmrec") is ALLMRecConfig and issubclass(schema_for(PLAIN), ALLMRecConfig)


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_a_profile_fills_in_what_the_yaml_leaves_out(profile: Any) -> None:
    config = read(profile=profile)
    assert {name: getattr(config.align, name) for name in PROFILES[profile]} == PROFILES[profile]
    for block in (config.project, config.lora):
        assert {name: getattr(block, name) for name in STAGE_2[profile]} == STAGE_2[profile]
    assert config.item_text.style == TEXT_STYLE[profile]


def test_the_paper_is_the_default_and_the_released_code_differs() -> None:
    assert config_dict(read()) == config_dict(read(profile="paper"))
    released = read(profile="released")
    assert (released.align.score, released.align.beta) == ("mean", 0.2)
    assert (released.project.rows_per_step, released.project.epochs) == (2, 10)


def test_the_yaml_stands_above_the_profile() -> None:
    config = read(
        profile="released", align={"beta": 0.7}, project={"epochs": 3}, item_text={"style": "labelled"}
    )
    assert (config.align.beta, config.align.score) == (0.7, "mean")
    assert (config.project.epochs, config.project.rows_per_step) == (3, 2)
    assert config.item_text.style == "labelled"


def test_the_resolved_config_reads_back_to_the_same(tmp_path: Path) -> None:
    first = read(
        profile="released",
        align={"width": 64},
        genres={"users": 2},
        methods=["tallrec", "a_llmrec"],
        seeds=[1, 2],
    )
    again = build_config(parse_yaml(dump_config(first)), "again")
    assert type(again).__mro__[1] is ALLMRecConfig and config_dict(again) == config_dict(first)


# Each breaks one rule of rules.py, or one that all systems share.
TOGETHER = [
    (
        dict(backbones={"direct": {"model": "mf"}, "sequential": {"model": "sasrec"}}),
        "backbones: direct, sequential named, A-LLMRec stands on one, name direct or sequential.",
    ),
    (
        dict(backbones={"rating": {"model": "deepfm"}}),
        "backbones: rating named, A-LLMRec stands on one, name direct or sequential.",
    ),
    (dict(scenario={"name": "warm"}), "scenario.name = 'warm': no such scenario, choose overall "),
    (dict(scenario={"name": "few_shot_0"}), "scenario.name = 'few_shot_0': no such scenario, "),
    (
        dict(scenario={"name": "cross_domain"}, methods=["a_llmrec"]),
        "scenario.trained: empty, cross_domain asks another run's ",
    ),
    (
        dict(scenario={"name": "cross_domain", "trained": "runs/x"}),
        "methods: mlp_llm has no vectors of another data set's items, ",
    ),
    (
        dict(project={"user_vector": False, "item_vectors": "none"}),
        "project.user_vector = False: nothing is left to train ",
    ),
    (dict(genres={"users": 2}, methods=["llm_only"]), "genres: A-LLMRec is asked beside the LLM alone, "),
    (dict(scenario={"trained": "runs/x"}), "scenario.trained = 'runs/x': only cross_domain takes it, "),
    (dict(methods=["a_llmrec", "a_llmrec"]), "methods = ['a_llmrec', 'a_llmrec']: one is there twice, "),
    (
        dict(rank={"engine": "vllm"}, methods=["tallrec"]),
        "rank.engine = 'vllm': the adapters of tallrec run in ",
    ),
    (dict(seeds=[1, 1]), "seeds = [1, 1]: one is there twice, "),
    (
        dict(parallel={"zero_stage": 0, "offload_optimizer": True}),
        "parallel.offload_optimizer = True: needs ZeRO, ",
    ),
]


@pytest.mark.parametrize(("changes", "start"), TOGETHER)
def test_rules_between_fields(changes: dict[str, Any], start: str) -> None:
    (text,) = problems(**changes)
    assert text.startswith(start)


@pytest.mark.parametrize("name", ["overall", "cold_users", "few_shot_10"])
def test_known_scenarios(name: str) -> None:
    assert read(scenario={"name": name}).scenario.name == name


def test_broken_rules_are_told_beside_wrong_fields_but_not_about_them() -> None:
    found = problems(
        scenario={"namee": "cross_domain", "negatives": 0},
        methods=["a_llmrec", "a_llmrec"],
        rank={"engine": "vlm"},
    )
    assert found == [
        "scenario.negatives = 0: input should be greater than 0 (Candidates beside the target).",
        "scenario.namee: unknown setting; did you mean 'name'?",
        "rank.engine = 'vlm': not one of the known values; did you mean 'vllm'?",
        "methods = ['a_llmrec', 'a_llmrec']: one is there twice, remove it.",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(align={"widt_h": 64}), "align.widt_h: unknown setting; did you mean 'width'?"),
        (
            dict(project={"schedul_e": "cosine"}),
            "project.schedul_e: unknown setting; did you mean 'schedule'?",
        ),
        (dict(align=3), "align = 3: not a block of settings; "),
        (
            dict(profile="releasd"),
            "profile = 'releasd': not one of the known values; did you mean 'released'?",
        ),
        (
            dict(align={"matching": False, "item_recon": False, "text_recon": False, "rec": False}),
            "align: matching, item_recon, text_recon and rec are all off: leave one on.",
        ),
        (dict(disliked_below=3), "disliked_below: unknown setting; "),
    ],
)
def test_mistakes_in_its_own_blocks(changes: dict[str, Any], told: str) -> None:
    (text,) = problems(**changes)
    assert text.startswith(told)
