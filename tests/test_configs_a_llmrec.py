"""The configs of A-LLMRec's tables: every cell of the paper has its file and what it varies."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from recloom.data_shards.cards import PAPER
from recloom.trainer.config_io import config_dict, read_config, read_yaml
from recloom.trainer.planning.users import data_name
from recloom.trainer.report.compare import PaperTable, paper_tables
from recloom.trainer.systems.a_llmrec.methods import asked_methods
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FOLDER = CONFIGS / "a_llmrec"
FILES = sorted(FOLDER.glob("table*.yaml"))
SETS = {
    "movies": "Amazon 2018 Movies and TV",
    "games": "Amazon 2018 Video Games",
    "beauty": "Amazon 2018 Luxury Beauty",
    "toys": "Amazon 2018 Toys and Games",
}
NOT_OURS = ("ctrl", "recformer")
BY_LAYERS = ("few_shot_256", "few_shot_128", "cold_users", "cross_domain")  # of MoRec: see the README
ABLATIONS: dict[str, dict[str, Any]] = {
    "": {},
    "w/o matching": {"align.matching": False},
    "w/o item-recon & text-recon": {"align.item_recon": False, "align.text_recon": False},
    "w/o rec": {"align.rec": False},
    "freeze SBERT": {"align.train_text_encoder": False},
    "w/o user representation": {"project.user_vector": False},
    "w/o joint embedding": {"project.item_vectors": "none"},
    "with random joint embedding": {"project.item_vectors": "random"},
    "all items": {"align.targets": "all", "project.targets": "all"},
}
USUAL = {
    "align.matching": True,
    "align.item_recon": True,
    "align.text_recon": True,
    "align.rec": True,
    "align.train_text_encoder": True,
    "align.targets": "last",
    "project.user_vector": True,
    "project.item_vectors": "joint",
    "project.targets": "last",
}


@lru_cache
def table_configs() -> dict[str, ALLMRecConfig]:
    found = {path.stem: read_config(path) for path in FILES}
    assert all(isinstance(config, ALLMRecConfig) for config in found.values())
    return found  # type: ignore[return-value]


def value(config: ALLMRecConfig, dotted: str) -> Any:
    block, name = dotted.split(".")
    return getattr(getattr(config, block), name)


def varied(config: ALLMRecConfig) -> dict[str, Any]:
    return {name: value(config, name) for name, usual in USUAL.items() if value(config, name) != usual}


def backbone_of(config: ALLMRecConfig) -> Any:
    return getattr(config.backbones, config.backbones.tasks[0])


@pytest.mark.parametrize(
    "table", paper_tables("a_llmrec"), ids=lambda t: f"{t.table} {t.task} {t.scenario} {t.variant}"
)
def test_every_cell_of_the_papers_tables_is_a_config(table: PaperTable) -> None:
    """Its data set, backbone, scenario, ablation and methods; cold and warm are reported with overall."""
    scenario = "overall" if table.scenario in ("cold", "warm") else table.scenario
    # on another data set the recommender has no rows, and A-LLMRec is its SBERT variant
    unasked = {"Base", *(["A-LLMRec"] if scenario == "cross_domain" else [])}
    for dataset, backbones in table.figures.items():
        for backbone, figures in backbones.items():
            if backbone in NOT_OURS or (backbone == "morec" and scenario in BY_LAYERS):
                continue
            fitting = [
                config
                for config in table_configs().values()
                if (data_name(config), backbone_of(config).model, config.scenario.name)
                == (dataset, backbone, scenario)
                and config.backbones.tasks == [table.task]
                and varied(config) == ABLATIONS[table.variant]
                and figures.keys() - unasked <= {method.name for method in asked_methods(config)}
            ]
            assert len(fitting) == 1, (dataset, backbone, [config.name for config in fitting])


@pytest.mark.parametrize("name", sorted(table_configs()))
def test_a_table_is_at_the_papers_scale(name: str) -> None:
    """Section 5.1, appendix B and Table 11; a recommender alone has no LLM of the paper beside it."""
    config = table_configs()[name]
    dataset, alone = data_name(config), config.methods == ("llm_only",)
    small = dataset in (SETS["beauty"], SETS["toys"])
    assert dataset in PAPER and SETS[name.split("_to_")[-1].split("_")[0 if "_to_" in name else 1]] == dataset
    assert (config.data.threshold, config.data.mode) == (4 if small else 5, "single_pass")
    assert config.positive_rating == (4 if small else None)
    assert (config.align.alpha, config.align.beta) == (0.5, 0.2 if small else 0.5)
    assert (config.align.epochs, config.align.batch_size, config.align.learning_rate) == (10, 32, 1e-4)
    assert config.align.width == 128 and config.scenario.negatives == 19 and config.profile == "paper"
    backbone = backbone_of(config)
    wide = 2 * backbone.embedding if backbone.model == "ncf" else backbone.embedding
    assert (wide, backbone.batch_size) == (50, 128)
    assert len(config.seeds) == (0 if config.scenario.trained else 5)
    if alone:
        assert config.model.path == "smollm2-135m-instruct"
        return
    assert config.model.path == "facebook/opt-6.7b" and config.prompts.history_items == 10
    for training in (config.project, config.lora):
        assert (training.epochs, training.rows_per_step, training.learning_rate) == (5, 4, 1e-4)


def test_sasrec_is_that_of_the_authors_code() -> None:
    for config in table_configs().values():
        backbone = backbone_of(config)
        if backbone.model == "sasrec":
            assert (backbone.blocks, backbone.heads, backbone.dropout) == (2, 1, 0.5)
            assert (backbone.max_length, backbone.learning_rate, backbone.max_epochs) == (50, 1e-3, 200)


def test_nouns_and_verbs() -> None:
    said = {"movies": ("movie", "watched"), "games": ("game", "played")}
    for name, config in table_configs().items():
        noun_verb = said.get("games" if "_to_" in name else name.split("_")[1], ("item", "bought"))
        assert (config.prompts.item_noun, config.prompts.verb) == noun_verb


def test_table_5_asks_the_models_of_a_seed_of_table_1() -> None:
    """A run with several seeds has its models in a folder a seed."""
    config, source = table_configs()["table5_movies_to_games"], table_configs()["table1_movies"]
    assert config.scenario.trained == f"{source.folder}/seed_{source.seeds[0]}"
    assert set(config.methods) <= set(source.methods)


def test_the_start_of_a_llmrec_is_table_1_with_one_seed() -> None:
    start = config_dict(read_config(CONFIGS / "a_llmrec_opt_6_7b.yaml"))
    table = config_dict(table_configs()["table1_movies"])
    differing = {name for name in start if start[name] != table[name]}
    assert differing == {"name", "seeds"}


def test_layers_make_morec_alone_and_ncf_out_of_a_table() -> None:
    """The README's command; `ncf` takes the place of the sequential backbone."""
    layers = [FOLDER / f"parts/{name}.yaml" for name in ("base_alone", "morec")]
    config = read_config(FOLDER / "table3_beauty.yaml", layers=layers)
    assert config.methods == ("llm_only",) and config.backbones.sequential.model == "morec"
    assert config.scenario.name == "cold_users" and config.model.path == "smollm2-135m-instruct"
    changed = read_config(FOLDER / "table1_games.yaml", layers=[FOLDER / "parts/ncf.yaml"])
    assert changed.backbones.tasks == ["direct"]


def test_a_table_on_two_cores() -> None:
    small = FOLDER / "parts/two_cores.yaml"
    config = read_config(FOLDER / "table1_beauty.yaml", layers=[small])
    assert config.model.path == read_yaml(small)["model"]["path"]
    assert data_name(config) == SETS["beauty"] and len(config.methods) == 4
