"""The YAML of Laser through the real parser: the paper's values, its rules, its stages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from yaml_settings import read_as, sentences

from recloom.trainer.collaborative import bert4rec
from recloom.trainer.stages import Stage
from recloom.trainer.systems.laser.methods import METHODS
from recloom.trainer.systems.laser.settings import LaserConfig, MethodName, Pooling
from recloom.trainer.systems.registry import config_class, recipe

PLAIN: dict[str, Any] = {
    "name": "try",
    "system": "laser",
    "data": {"source": "movielens", "variant": "100k"},
    "model": {"path": "smollm2-135m-instruct"},
    "backbones": {"sequential": {"model": "bert4rec"}},
}
ALL = list(get_args(MethodName))


def read(**changes: Any) -> LaserConfig:
    """PLAIN with these top-level settings in place of its own, by way of YAML text."""
    return read_as(LaserConfig, PLAIN | changes)


def problems(**changes: Any) -> list[str]:
    """The sentences of a refused config."""
    return sentences(lambda: read(**changes))


def stages(**changes: Any) -> dict[str, Stage]:
    return {stage.name: stage for stage in recipe(read(**changes))}


def test_the_system_is_known() -> None:
    assert config_class("laser") is LaserConfig


def test_the_defaults_are_the_papers() -> None:
    """Appendix B and section 3.3; shared/papers/protocol.md."""
    config = read()
    mformer = config.bitune.mformer
    assert (mformer.experts, mformer.tokens) == (8, 32)
    assert (mformer.blocks, mformer.hidden, mformer.heads) == (12, 768, 12)
    assert (config.bitune.temperature, config.bitune.balance_weight) == (0.05, 0.01)
    assert (config.stage_1.epochs, config.stage_2.epochs) == (15, 5)
    for stage in (config.stage_1, config.stage_2):
        assert stage.learning_rate == 1e-4 and stage.schedule == "constant" and stage.warmup_steps == 0
        assert stage.betas == (0.9, 0.999) and stage.weight_decay == 0 and stage.gradient_clipping == 0
        assert (stage.pack_length, stage.rows_per_step) == (16, 4), "four users a step, a row each"
    assert config.positive_rating is None and config.evaluate.ks == (10,)
    assert not config.rank.mask_seen and config.learn.share == 1 and config.learn.targets == "last"
    assert (config.learn.users, config.learn.validation, config.learn.test) == (None, None, None)
    assert config.texts.template == "browsing" and config.texts.item_template is None
    assert config.methods == ("laser",) and config.bitune.balance_over == "user"


def test_the_papers_bert4rec_can_be_named() -> None:
    """Two blocks, two heads of 32."""
    settings = read(backbones={"sequential": {"model": "bert4rec", "heads": 2}}).backbones.sequential
    assert isinstance(settings, bert4rec.Settings)
    assert (settings.blocks, settings.heads, settings.embedding) == (2, 2, 64)


def test_the_router_of_the_paper_can_be_named() -> None:
    assert read().bitune.mformer.router_gradient == "scaled"
    paper = read(bitune={"mformer": {"router_gradient": "none"}})
    assert paper.bitune.mformer.router_gradient == "none" and paper.bitune.mformer.experts == 8


def test_all_methods_are_known() -> None:
    assert read(methods=ALL).methods == tuple(METHODS)
    assert {method.pooling for method in METHODS.values()} == set(get_args(Pooling))


TOGETHER: list[tuple[dict[str, Any], str]] = [
    (
        dict(backbones={"sequential": {"model": "sasrec"}, "direct": {"model": "mf"}}),
        "backbones: direct, sequential named, Laser stands on one, ",
    ),
    (
        dict(backbones={"rating": {"model": "deepfm"}}),
        "backbones: rating named, Laser stands on one, ",
    ),
    (dict(methods=["laser", "laser"]), "methods = ['laser', 'laser']: one is there twice, "),
    (
        dict(baselines=["sasrek"]),
        "baselines = ['sasrek']: 'sasrek' is no such recommender, did you mean 'sasrec', choose from ",
    ),
    (dict(baselines=["deepfm"]), "baselines = ['deepfm']: 'deepfm' is no such recommender"),
    (
        dict(baselines=["sasrec", "sasrec"]),
        "baselines = ['sasrec', 'sasrec']: one is there twice or is the backbone, ",
    ),
    (dict(baselines=["bert4rec"]), "baselines = ['bert4rec']: one is there twice or is the backbone, "),
    (
        dict(methods=["no_stage_1"], stage_2={"epochs": 0}),
        "methods: no_stage_1 leaves nothing to train, ",
    ),
    (
        dict(methods=["laser", "no_stage_2"], stage_1={"epochs": 0}),
        "methods: no_stage_2 leaves nothing to train, ",
    ),
    (dict(methods=["no_stage_2"]), "methods: no_stage_2 is laser as stage 1 leaves it, "),
    (
        dict(stage_1={"epochs": 0}, stage_2={"epochs": 0}),
        "stage_1.epochs = 0: nothing is trained with stage_2.epochs = 0, ",
    ),
    (dict(baselines=["vectors"]), "baselines = ['vectors']: 'vectors' is no such recommender"),
    (dict(seeds=[1, 1]), "seeds = [1, 1]: one is there twice, "),
]


@pytest.mark.parametrize(("changes", "start"), TOGETHER)
def test_rules_between_fields(changes: dict[str, Any], start: str) -> None:
    (text,) = problems(**changes)
    assert text.startswith(start)


@pytest.mark.parametrize(
    "changes",
    [
        dict(backbones={"direct": {"model": "mf"}}),
        dict(baselines=["sasrec", "mf"]),
        dict(methods=["no_stage_1"], stage_1={"epochs": 0}),
        dict(methods=["no_stage_2", "laser"], stage_2={"epochs": 0}),
        dict(stage_1={"epochs": 0}, stage_2={"epochs": 0}, bitune={"start_from": "runs/other"}),
    ],
)
def test_what_the_rules_let_pass(changes: dict[str, Any]) -> None:
    read(**changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(methods=["lasr"]), "methods.0 = 'lasr': not one of the known values; did you mean 'laser'?"),
        (dict(methods=[]), "methods = []: "),
        (dict(bitune={"temprature": 1}), "bitune.temprature: unknown setting; did you mean 'temperature'?"),
        (dict(bitune={"temperature": 0}), "bitune.temperature = 0: input should be greater than 0 "),
        (dict(bitune={"balance_over": "users"}), "bitune.balance_over = 'users': not one of the known "),
        (
            dict(bitune={"mformer": {"hidden": 10, "heads": 3}}),
            "bitune.mformer: hidden is 10, heads is 3: heads must divide hidden, change one of them.",
        ),
        (dict(bitune={"mformer": {"experts": 0}}), "bitune.mformer.experts = 0: "),
        (dict(learn={"share": 1.5}), "learn.share = 1.5: input should be less than or equal to 1 "),
        (dict(stage_1={"epochs": -1}), "stage_1.epochs = -1: input should be greater than or equal to 0 "),
        (dict(stage_3={"epochs": 1}), "stage_3: unknown setting; did you mean 'stage_"),
        (dict(embed={"chunk": 0}), "embed.chunk = 0: "),
        (dict(texts={"history": 3}), "texts.history: unknown setting; did you mean 'history_items'?"),
    ],
)
def test_mistakes_in_its_own_blocks(changes: dict[str, Any], told: str) -> None:
    (text,) = problems(**changes)
    assert text.startswith(told)


def test_stages_in_order() -> None:
    names = list(stages(methods=["laser", "no_stage_2", "no_mformer"], baselines=["mf"]))
    assert names == [
        "prepare",
        "texts",
        "texts_test",
        "backbone",
        "baselines",
        "bitune_1_laser",
        "bitune_2_laser",
        "bitune_1_no_mformer",
        "bitune_2_no_mformer",
        "rank",
        "export",
        "evaluate",
        "report",
    ]
    assert "baselines" not in stages() and "bitune_2_laser" not in stages(stage_2={"epochs": 0})


def test_each_stage_names_what_it_reads() -> None:
    """Every setting of Laser's blocks changes some stage; a need stands before who needs it."""
    found = stages(methods=ALL, baselines=["mf"])
    order = list(found)
    for stage in found.values():
        assert all(order.index(name) < order.index(stage.name) for name in stage.needs)
    named = {name for stage in found.values() for name in stage.settings}
    unnamed = {"name", "system", "run_dir", "seeds", "parallel", "bulk"}
    for name in set(LaserConfig.model_fields) - unnamed:
        assert any(one == name or one.startswith(f"{name}.") for one in named), name
    first, second = found["bitune_1_laser"], found["bitune_2_laser"]
    assert "bitune_1_laser" in second.needs and "bitune_1_laser" not in found["bitune_1_no_moe"].needs
    assert "stage_1.epochs" in first.settings and "stage_2.epochs" not in first.settings
    assert not {"stage_1.log_every", "stage_1.checkpoint_every"} & set(first.settings)
    assert {"bitune", "embed.pack_length", "seed", "model.dtype"} <= set(first.settings) & set(
        second.settings
    )


def test_what_is_asked_needs_every_training() -> None:
    found = stages(methods=ALL)
    trained = {name for name in found if name.startswith("bitune")}
    assert len(trained) == 2 * (len(ALL) - 1)
    assert trained <= set(found["rank"].needs) and trained <= set(found["export"].needs)
    assert {"rank", "backbone"} <= set(found["evaluate"].needs)
