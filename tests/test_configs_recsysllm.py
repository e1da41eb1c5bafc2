"""The configs of RecSysLLM: the data sets and settings of the paper, at two scales and on two cores."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from recloom.data_shards.cards import AMAZON, RECSYSLLM
from recloom.trainer.config_io import config_dict, read_config, read_yaml
from recloom.trainer.planning.users import data_name
from recloom.trainer.report.compare import PaperTable, paper_tables
from recloom.trainer.report.systems.recsysllm import variant
from recloom.trainer.systems.recsysllm.methods import METHODS
from recloom.trainer.systems.recsysllm.planning import planned_families
from recloom.trainer.systems.recsysllm.settings import FAMILIES, RecSysLLMConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FOLDER = CONFIGS / "recsysllm"
FILES = sorted(path for kind in ("main", "full", "ablation") for path in FOLDER.glob(f"{kind}_*.yaml"))
SETS = {
    "sports": "Amazon 2014 Sports and Outdoors",
    "beauty": "Amazon 2014 Beauty",
    "toys": "Amazon 2014 Toys and Games",
}
BY_NAME = {name: stem for stem, name in SETS.items()}


@lru_cache
def paper_configs() -> dict[str, RecSysLLMConfig]:
    found = {path.stem: read_config(path) for path in FILES}
    assert all(isinstance(config, RecSysLLMConfig) for config in found.values())
    return found  # type: ignore[return-value]


def test_each_data_set_of_the_paper_has_its_three_configs() -> None:
    assert set(SETS.values()) == {name for name, row in AMAZON.items() if row[0] == RECSYSLLM}
    wanted = {f"{kind}_{stem}": name for kind in ("main", "full", "ablation") for stem, name in SETS.items()}
    assert {stem: data_name(config) for stem, config in paper_configs().items()} == wanted


@pytest.mark.parametrize("name", sorted(paper_configs()))
def test_a_config_is_at_the_papers_scale(name: str) -> None:
    """Section on the set-up; what it leaves open is GLM's, see MaskSettings."""
    config = paper_configs()[name]
    assert (config.data.source, config.data.threshold, config.data.texts) == ("amazon2014", 0, True)
    assert config.data.reviews.endswith("_5.json.gz") and config.positive_rating is None
    assert planned_families(config) == FAMILIES and config.corpus.samples is None
    assert config.corpus.negatives == 99 and config.corpus.jitter and config.corpus.templates == "recsysllm"
    assert config.corpus.periods.shares == (0.1, 0.3, 0.6)
    assert (config.mask.mixture, config.mask.entity_share) == ((0.5, 0.2, 0.3), 0.15)
    assert (config.mask.document_min, config.mask.document_max) == (0.5, 1.0)
    training = config.pretrain
    assert (training.epochs, training.learning_rate, training.warmup_steps) == (8, 1e-5, 500)
    assert training.rows_per_step % 16 == 0 and config.parallel.zero_stage == 3
    assert config.ask.users is None and config.ask.beams == 20 and config.ask.prompts == ("seen", "unseen")
    assert config.evaluate.ks == (1, 5, 10) and variant(config_dict(config)) == ""
    if name.startswith("full"):
        assert (config.model.path, training.lora) == ("meta-llama/Llama-2-7b-hf", None)
    else:
        assert config.model.path == "zai-org/glm-4-9b-hf"
        assert training.lora is not None and (training.lora.r, training.lora.modules) == (8, "all-linear")


@pytest.mark.parametrize("stem", SETS)
def test_the_ablation_is_of_everything(stem: str) -> None:
    """And of the same run as the data set's main config."""
    main, ablation = (paper_configs()[f"{kind}_{stem}"] for kind in ("main", "ablation"))
    assert set(ablation.methods) == set(METHODS)
    one, other = config_dict(main), config_dict(ablation)
    assert {name for name in one if one[name] != other[name]} == {"name", "methods"}


@pytest.mark.parametrize("table", paper_tables("recsysllm"), ids=lambda table: f"{table.table}, {table.task}")
def test_every_table_of_the_paper_has_a_config(table: PaperTable) -> None:
    """With the backbone of one of its cells; others are a setting on the command line."""
    for dataset, backbones in table.figures.items():
        config = paper_configs()[f"main_{BY_NAME[dataset]}"]
        backbone = getattr(config.backbones, table.task, None)
        assert ("" if backbone is None else backbone.model) in backbones


@pytest.mark.parametrize(("start", "table"), [("glm4_9b", "main_beauty"), ("llama2_7b", "full_beauty")])
def test_the_start_is_beauty(start: str, table: str) -> None:
    one = config_dict(read_config(CONFIGS / f"recsysllm_{start}.yaml"))
    other = config_dict(paper_configs()[table])
    assert {name for name in one if one[name] != other[name]} == {"name"}


def test_a_table_on_two_cores() -> None:
    """All weights of the small model are trained, whatever the scale below says."""
    small = FOLDER / "parts/two_cores.yaml"
    config: Any = read_config(FOLDER / "ablation_beauty.yaml", layers=[small])
    assert config.model.path == read_yaml(small)["model"]["path"] and config.pretrain.lora is None
    assert len(config.methods) == 5 and data_name(config) == SETS["beauty"] and config.corpus.negatives == 9


def test_all_families_are_measured_on_a_dump_with_reviews() -> None:
    config: Any = read_config(FOLDER / "measured_musical_instruments.yaml")
    assert planned_families(config) == FAMILIES and config.model.path == "smollm2-135m-instruct"
    assert config.backbones.tasks == ["direct", "sequential", "rating"]
    assert config.data.source == "amazon2014" and config.data.meta is None
