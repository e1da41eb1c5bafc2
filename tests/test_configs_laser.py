"""The configs of Laser's tables and figures: every cell of the paper has its file and what it varies."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from recloom.trainer.config_io import config_dict, read_config, read_yaml
from recloom.trainer.planning.users import data_name
from recloom.trainer.report.compare import PaperTable, paper_tables
from recloom.trainer.report.systems.laser import BACKBONES, METHODS, variant
from recloom.trainer.systems.laser.methods import asked_methods
from recloom.trainer.systems.laser.settings import LaserConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FOLDER = CONFIGS / "laser"
FILES = sorted([*FOLDER.glob("table*.yaml"), *FOLDER.glob("figure*.yaml")])
MEASURED = sorted(FOLDER.glob("measured*.yaml"))
SETS = {
    "scientific": "Amazon 2018 Industrial and Scientific",
    "pet": "Amazon 2018 Pet Supplies",
    "arts": "Amazon 2018 Arts Crafts and Sewing",
}
TEMPLATES: dict[str, dict[str, Any]] = {
    "w/o phrase": {"texts.template": "browsing_no_phrase"},
    "w/o instruction": {"texts.template": "browsing_bare"},
    "own item instruction": {"texts.item_template": "browsing_item"},
}
SIZES = [(8, 32), (4, 32), (12, 32), (8, 16), (8, 48)]
USUAL: dict[str, Any] = {
    "texts.template": "browsing",
    "texts.item_template": None,
    "bitune.mformer.experts": 8,
    "bitune.mformer.tokens": 32,
    "bitune.start_from": None,
    "learn.share": 1,
    "stage_1.epochs": 15,
    "stage_2.epochs": 5,
}


@lru_cache
def paper_configs() -> dict[str, LaserConfig]:
    found = {path.stem: read_config(path) for path in FILES}
    assert all(isinstance(config, LaserConfig) for config in found.values())
    return found  # type: ignore[return-value]


def value(config: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        config = getattr(config, name)
    return config


def varied(config: LaserConfig) -> dict[str, Any]:
    return {name: value(config, name) for name, usual in USUAL.items() if value(config, name) != usual}


def wanted(table: PaperTable) -> dict[str, Any]:
    """What a cell of the paper's file sets otherwise than Laser itself."""
    if table.variant in TEMPLATES:
        return TEMPLATES[table.variant]
    for experts, tokens in SIZES:
        if table.variant == f"K = {experts}, L = {tokens}":
            sizes = {"bitune.mformer.experts": experts, "bitune.mformer.tokens": tokens}
            return {name: size for name, size in sizes.items() if size != USUAL[name]}
    assert table.variant == ""
    return {}


def fits(config: LaserConfig, table: PaperTable, dataset: str, backbone: str) -> bool:
    """Its data, backbone, variation, and every method of the table that is ours."""
    asked = {"Base", *config.baselines, *(method.name for method in asked_methods(config))}
    ours = table.figures[dataset][backbone].keys() & METHODS.keys()
    return (
        (data_name(config), config.backbones.tasks) == (dataset, [table.task])
        and getattr(config.backbones, table.task).model == backbone
        and varied(config) == wanted(table)
        and ours <= asked
    )


@pytest.mark.parametrize("table", paper_tables("laser"), ids=lambda t: f"{t.table} {t.variant}")
def test_every_cell_of_the_papers_tables_is_a_config(table: PaperTable) -> None:
    """One of its own; Laser itself is the first row of Table 6, whose config is Table 2's."""
    stem = table.table.lower().replace(" ", "")
    own = "table2" if (table.table, table.variant) == ("Table 6", "") else stem
    for dataset, backbones in table.figures.items():
        for backbone in backbones:
            fitting = [name for name, c in paper_configs().items() if fits(c, table, dataset, backbone)]
            assert len([name for name in fitting if name.startswith(f"{own}_")]) == 1, (dataset, fitting)


@pytest.mark.parametrize("name", sorted(paper_configs()))
def test_a_config_is_at_the_papers_scale(name: str) -> None:
    """Section 4.1 and appendix B; the LLM is of ChatGLM2's family and width."""
    config = paper_configs()[name]
    assert SETS[name.split("_")[1]] == data_name(config)
    assert (config.data.threshold, config.data.drop_untitled) == (0, True)
    assert config.data.reviews.endswith("_5.json.gz") and config.positive_rating is None
    assert config.model.path == "zai-org/glm-4-9b-hf" and config.model.dtype == "bfloat16"
    mformer = config.bitune.mformer
    assert (mformer.blocks, mformer.hidden, mformer.heads) == (12, 768, 12)
    assert (config.bitune.temperature, config.bitune.balance_weight) == (0.05, 0.01)
    for stage in (config.stage_1, config.stage_2):
        assert (stage.rows_per_step, stage.pack_length, stage.learning_rate) == (4, 16, 1e-4)
        assert (stage.schedule, stage.warmup_steps) == ("constant", 0)
    backbone = getattr(config.backbones, config.backbones.tasks[0])
    assert (backbone.embedding, backbone.blocks, backbone.heads) == (64, 2, 2)
    assert backbone.model == ("sasrec" if name.startswith("figure4") else "bert4rec")
    assert config.evaluate.ks == (10,) and not config.rank.mask_seen
    assert len(config.seeds) == (0 if name.startswith("figure3") else 5)


def test_table_7_has_the_papers_pairs() -> None:
    named = {f"table7_scientific_{experts}_{tokens}" for experts, tokens in SIZES}
    assert {name for name in paper_configs() if name.startswith("table7")} == named
    for experts, tokens in SIZES:
        mformer = paper_configs()[f"table7_scientific_{experts}_{tokens}"].bitune.mformer
        assert (mformer.experts, mformer.tokens) == (experts, tokens)


def test_figure_3_starts_from_the_models_of_a_seed_of_table_2() -> None:
    """A run with several seeds has its models in a folder a seed."""
    source = paper_configs()["table2_pet"]
    found = {name: c for name, c in paper_configs().items() if name.startswith("figure3")}
    for config in found.values():
        assert config.bitune.start_from == f"{source.folder}/seed_{source.seeds[0]}"
        assert set(config.methods) <= set(source.methods)
        assert config.bitune.mformer == source.bitune.mformer
        assert config.backbones.model_dump() == source.backbones.model_dump()
    shares = {name.removeprefix("figure3_scientific_"): c.learn.share for name, c in found.items()}
    none = shares.pop("zero_shot")
    assert none < 0.01 and shares == {"5": 0.05, "10": 0.1, "20": 0.2, "50": 0.5, "100": 1}
    zero = found["figure3_scientific_zero_shot"]
    assert (zero.stage_1.epochs, zero.stage_2.epochs) == (0, 0) and variant(config_dict(zero)) == "zero-shot"


def test_the_start_of_laser_is_table_2_with_one_seed() -> None:
    start = config_dict(read_config(CONFIGS / "laser_glm4_9b.yaml"))
    table = config_dict(paper_configs()["table2_scientific"])
    assert {name for name in start if start[name] != table[name]} == {"name", "seeds"}


def test_a_table_on_two_cores() -> None:
    small = FOLDER / "parts/two_cores.yaml"
    config = read_config(FOLDER / "table4_scientific.yaml", layers=[small])
    assert config.model.path == read_yaml(small)["model"]["path"] and len(config.methods) == 6
    assert data_name(config) == SETS["scientific"] and config.bitune.mformer.blocks == 2


def test_two_cores_are_what_the_quickstart_runs_on() -> None:
    """Its data, methods, texts and steps are its own."""
    quick, small = (
        read_yaml(path) for path in (CONFIGS / "laser_quickstart.yaml", FOLDER / "parts/two_cores.yaml")
    )
    for block in ("model", "backbones", "parallel", "evaluate"):
        assert small[block] == quick[block]
    assert small["texts"]["start_token"] == quick["texts"]["start_token"] == "<|endoftext|>"
    assert small["bitune"]["balance_over"] == quick["bitune"]["balance_over"] == "row"


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_what_is_measured(path: Path) -> None:
    config = read_config(path)
    assert isinstance(config, LaserConfig) and config.seeds == (2024, 2025, 2026)
    assert {"laser", "no_mformer", "no_stage_2"} <= {*config.methods} and config.baselines == ("sasrec",)
    assert config.positive_rating is None and config.model.path == "smollm2-135m-instruct"
    texts_of_table_6 = {"measured_scientific": "w/o instruction", "measured_beauty": ""}
    assert variant(config_dict(config)) == texts_of_table_6[path.stem]
    in_paper = {name for table in paper_tables("laser") for name in table.figures}
    assert (data_name(config) in in_paper) == (path.stem == "measured_scientific")


def test_baselines_are_known_to_the_report() -> None:
    assert all(set(config.baselines) <= set(BACKBONES) for config in paper_configs().values())
