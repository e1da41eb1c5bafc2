"""The YAML of RecSysLLM through the real parser: the paper's values, its rules, its methods and stages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from yaml_settings import read_as, sentences

from recloom.trainer.config_rules import Rule
from recloom.trainer.stages import Stage
from recloom.trainer.systems.recsysllm.methods import METHODS, asked_methods
from recloom.trainer.systems.recsysllm.rules import RULES
from recloom.trainer.systems.recsysllm.settings import (
    FAMILIES,
    FamilyName,
    LoraBlock,
    MethodName,
    RecSysLLMConfig,
)
from recloom.trainer.systems.registry import config_class, recipe

PLAIN: dict[str, Any] = {
    "name": "try",
    "system": "recsysllm",
    "data": {"source": "movielens", "variant": "100k"},
    "model": {"path": "smollm2-135m-instruct"},
}
ALL = list(get_args(MethodName))


def read(**changes: Any) -> RecSysLLMConfig:
    """PLAIN with these top-level settings in place of its own, by way of YAML text."""
    return read_as(RecSysLLMConfig, PLAIN | changes)


def problems(**changes: Any) -> list[str]:
    return sentences(lambda: read(**changes))


def stages(**changes: Any) -> dict[str, Stage]:
    return {stage.name: stage for stage in recipe(read(**changes))}


def test_the_system_is_known() -> None:
    assert config_class("recsysllm") is RecSysLLMConfig


def test_the_defaults_are_the_papers() -> None:
    """shared/papers/recsysllm.md: masks, periods, set-up, P5's protocol; GLM's code where it is silent."""
    config = read()
    mask = config.mask
    assert mask.mixture == (0.5, 0.2, 0.3) and mask.entity_share == mask.sentence_share == 0.15
    assert (mask.document_min, mask.document_max) == (0.5, 1.0)
    assert (mask.mean_span, mask.max_span_tokens) == (3, 40)
    assert (mask.units, mask.order, mask.positions) == ("entity", "chronological", "2d")
    assert config.corpus.periods.shares == (0.1, 0.3, 0.6)
    assert (config.corpus.negatives, config.corpus.jitter, config.ask.beams) == (99, True, 20)
    assert config.evaluate.ks == (1, 5, 10) and config.ask.prompts == ("seen", "unseen")
    assert (config.pretrain.epochs, config.pretrain.learning_rate, config.pretrain.context) == (8, 1e-5, 1024)
    assert config.pretrain.lora is None and (LoraBlock().r, LoraBlock().modules) == (8, "all-linear")
    assert config.positive_rating is None and config.methods == ("recsysllm",)
    assert config.corpus.families is None and get_args(FamilyName) == FAMILIES


def test_no_recommender_need_be_named() -> None:
    """It is there to be compared with; a system that stands on one refuses the same YAML."""
    assert not read().backbones.tasks
    assert "backbones" not in stages() and "backbones" not in stages()["evaluate"].needs
    named = stages(backbones={"sequential": {"model": "sasrec"}})
    assert "backbones" in named and "backbones" in named["evaluate"].needs
    (text,) = sentences(lambda: read_as(config_class("laser"), PLAIN | {"system": "laser"}))
    assert text.startswith("backbones: required and not given")


TOGETHER: list[tuple[dict[str, Any], str]] = [
    (
        dict(methods=["one_d", "one_d"]),
        "methods = ['one_d', 'one_d']: one is there twice, remove it.",
    ),
    (
        dict(corpus={"families": ["rating", "rating"]}),
        "corpus.families = ['rating', 'rating']: one is there twice, remove it.",
    ),
    (
        dict(methods=["sequential_only"], corpus={"families": ["rating"]}),
        "methods: sequential_only needs the family sequential, add it to corpus.families.",
    ),
    (
        dict(corpus={"periods": {"shares": [0.5, 0.5, 0.5]}}),
        "corpus.periods.shares = [0.5, 0.5, 0.5]: three shares that add up to 1 are needed, change them.",
    ),
    (
        dict(corpus={"periods": {"shares": [-0.5, 0.5, 1.0]}}),
        "corpus.periods.shares = [-0.5, 0.5, 1.0]: three shares that add up to 1 are needed, change them.",
    ),
    (
        dict(corpus={"periods": {"short_days": 30, "medium_days": 7.5}}),
        "corpus.periods.short_days = 30: it is longer than medium_days = 7.5, swap them.",
    ),
    (
        dict(evaluate={"ks": [1, 30]}),
        "evaluate.ks = [1, 30]: a search with ask.beams = 20 finds no more items than that, raise it to 30.",
    ),
    (
        dict(ask={"prompts": ["seen", "seen"]}),
        "ask.prompts = ['seen', 'seen']: one is there twice, remove it.",
    ),
    (
        dict(ask={"max_tokens": 200}, pretrain={"context": 128, "pack_length": 128}),
        "ask.max_tokens = 200: an answer longer than the longest text trained on, pretrain.context = 128, "
        "lower it to 128.",
    ),
    (
        dict(model={"path": "x", "attention": "sdpa"}),
        "model.attention = sdpa: blank infilling has an attention of its own, leave the setting out.",
    ),
    (
        dict(model={"path": "x", "tuned": "runs/other"}),
        "model.tuned = 'runs/other': only Llama4Rec answers with another run's model, leave it out.",
    ),
    (dict(seeds=[1, 1]), "seeds = [1, 1]: one is there twice, the same run again adds nothing, remove it."),
]


@pytest.mark.parametrize(("changes", "told"), TOGETHER)
def test_rules_between_fields(changes: dict[str, Any], told: str) -> None:
    assert problems(**changes) == [told]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(rule.fields))
def test_every_rule_of_the_system_has_an_example(rule: Rule) -> None:
    names = [field.rsplit(".", 1)[-1] for field in rule.fields]
    assert any(
        told.startswith(rule.fields[0].split(".")[0]) and all(n in told for n in names)
        for _, told in TOGETHER
    )


@pytest.mark.parametrize(
    "changes",
    [
        dict(methods=ALL),
        dict(methods=["sequential_only"], corpus={"families": ["sequential"]}),
        dict(corpus={"periods": {"short_days": 7, "medium_days": 7}}),
        dict(ask={"beams": 10}),
        dict(ask={"max_tokens": 64}, pretrain={"context": 64, "pack_length": 64}),
        dict(mask={"units": "token", "mixture": [1, 0, 0]}),
        dict(pretrain={"lora": {}, "answer_share": 0}),
    ],
)
def test_what_the_rules_let_pass(changes: dict[str, Any]) -> None:
    read(**changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            dict(methods=["permutd"]),
            "methods.0 = 'permutd': not one of the known values; did you mean 'permuted'?",
        ),
        (dict(methods=[]), "methods = []: "),
        (
            dict(corpus={"families": ["ratings"]}),
            "corpus.families.0 = 'ratings': not one of the known values",
        ),
        (dict(corpus={"families": []}), "corpus.families = []: "),
        (dict(corpus={"history": 3}), "corpus.history: unknown setting; did you mean 'history_items'?"),
        (dict(corpus={"negatives": 0}), "corpus.negatives = 0: "),
        (dict(corpus={"periods": {"short_days": -1}}), "corpus.periods.short_days = -1: "),
        (dict(corpus={"periods": {"by": "days"}}), "corpus.periods.by = 'days': not one of the known values"),
        (
            dict(mask={"mixture": [0.5, 0.5, 0.5]}),
            "mask: mixture = [0.5, 0.5, 0.5]: three shares that add up to 1",
        ),
        (
            dict(mask={"document_min": 0.9, "document_max": 0.5}),
            "mask: document_min is above document_max: swap",
        ),
        (dict(mask={"entity_share": 0.9}), "mask.entity_share = 0.9: "),
        (dict(mask={"positions": "3d"}), "mask.positions = '3d': not one of the known values"),
        (dict(pretrain={"answer_share": 1.5}), "pretrain.answer_share = 1.5: "),
        (dict(pretrain={"table_rate": 0}), "pretrain.table_rate = 0: "),
        (dict(pretrain={"lora": {"rank": 4}}), "pretrain.lora.rank: unknown setting"),
        (dict(ask={"prompts": ["new"]}), "ask.prompts.0 = 'new': not one of the known values"),
        (dict(ask={"beams": 0}), "ask.beams = 0: "),
        (dict(evaluate={"ks": []}), "evaluate.ks = []: "),
    ],
)
def test_mistakes_in_its_own_blocks(changes: dict[str, Any], told: str) -> None:
    (text,) = problems(**changes)
    assert text.startswith(told)


# --- methods and stages -------------------------------------------------------------------------------


def test_a_method_leaves_out_one_thing() -> None:
    assert set(METHODS) == set(ALL) and all(method.key == key for key, method in METHODS.items())
    assert len({method.name for method in METHODS.values()}) == len(METHODS)
    config = read(methods=ALL, mask={"entity_share": 0.2})
    assert asked_methods(config) == [METHODS[name] for name in ALL]
    assert METHODS["recsysllm"].settings(config) == config.mask
    changed = {
        "token_masks": ("units", "token"),
        "permuted": ("order", "permuted"),
        "one_d": ("positions", "1d"),
    }
    for name, (field, setting) in changed.items():
        mask = METHODS[name].settings(config)  # type: ignore[index]
        differing = {f: v for f, v in mask.model_dump().items() if v != config.mask.model_dump()[f]}
        assert differing == {field: setting} and METHODS[name].of(FAMILIES) == FAMILIES  # type: ignore[index]
    alone = METHODS["sequential_only"]
    assert alone.settings(config) == config.mask
    assert alone.of(FAMILIES) == ("sequential",) and alone.of(("rating",)) == ()


def test_stages_in_order() -> None:
    names = list(stages(methods=["recsysllm", "one_d"], backbones={"rating": {"model": "deepfm"}}))
    assert names == [
        "prepare",
        "corpus",
        "questions",
        "backbones",
        "pretrain_recsysllm",
        "pretrain_one_d",
        "generate_recsysllm",
        "generate_one_d",
        "evaluate",
        "report",
    ]


def test_each_stage_names_what_it_reads() -> None:
    """Every setting of its blocks changes some stage; a need stands before who needs it."""
    found = stages(methods=ALL, backbones={"rating": {"model": "deepfm"}})
    order = list(found)
    for stage in found.values():
        assert all(order.index(name) < order.index(stage.name) for name in stage.needs)
    named = {name for stage in found.values() for name in stage.settings}
    unnamed = {"name", "system", "run_dir", "seeds", "parallel", "bulk"}
    for name in set(RecSysLLMConfig.model_fields) - unnamed:
        assert any(one == name or one.startswith(f"{name}.") for one in named), name
    train, ask = found["pretrain_recsysllm"], found["generate_recsysllm"]
    assert {"mask", "pretrain.lora", "pretrain.answer_share", "model.path", "seed"} <= set(train.settings)
    assert not {"pretrain.log_every", "pretrain.checkpoint_every"} & set(train.settings)
    assert train.where == "ranks" and ask.where == "process"
    assert {"questions", "pretrain_recsysllm"} <= set(ask.needs)
    unread = {f"ask.{name}" for name in type(read().ask).model_fields} - named
    assert unread == {"ask.batch"}, "how many are answered together changes no answer"


def test_other_questions_do_not_train_again() -> None:
    """What is asked, how many and with which beams is no input of the training, nor of the corpus."""
    found = stages(methods=ALL)
    for name in ("corpus", *(f"pretrain_{method}" for method in ALL)):
        assert "questions" not in found[name].needs
        assert not any(setting.startswith(("ask", "evaluate")) for setting in found[name].settings)
