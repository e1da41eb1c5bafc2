"""What the plan says of Laser: the paper's scale, what is trained, and configs that train nothing."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import build_config, read_config
from recloom.trainer.plan import Plan, format_plan, make_plan
from recloom.trainer.planning.cluster import make_cluster
from recloom.trainer.planning.memory import Setup, SmallParts, training_memory
from recloom.trainer.planning.model_size import KNOWN
from recloom.trainer.planning.outline import outline_of
from recloom.trainer.planning.users import DataSize, data_size
from recloom.trainer.systems.laser.bituning import BiTuning
from recloom.trainer.systems.laser.methods import METHODS, Method
from recloom.trainer.systems.laser.network import make_network
from recloom.trainer.systems.laser.planning import line_tokens, method_parts, text_tokens
from recloom.trainer.systems.laser.settings import LaserConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GLM = KNOWN["zai-org/glm-4-9b-hf"]
HEIGHT = 24  # of a small LLM


@lru_cache
def shipped(name: str, *overrides: tuple[str, str]) -> RunConfig:
    """The run folder is nowhere: a finished run here must not change what a plan says."""
    return read_config(CONFIGS / f"{name}.yaml", [("run_dir", "/nowhere/runs"), *overrides])


def table(*overrides: tuple[str, str]) -> RunConfig:
    return shipped("laser/table2_scientific", *overrides)


def laser(**blocks: Any) -> LaserConfig:
    raw = {
        "name": "x",
        "system": "laser",
        "data": {"source": "movielens"},
        "model": {"path": "smollm2-135m-instruct"},
        "backbones": {"sequential": {"model": "bert4rec"}},
    }
    config = build_config({**raw, **blocks}, "test")
    assert isinstance(config, LaserConfig)
    return config


def status(plan: Plan, name: str) -> str:
    return next(check.status for check in plan.checks if check.name == name)


def text(plan: Plan, name: str) -> str:
    return next(check.text for check in plan.checks if check.name == name)


def line(plan: Plan, name: str) -> str:
    return next(told for label, told in plan.arithmetic if label == name)


@pytest.mark.parametrize("gpus", [1, 2, 4])
def test_the_paper_fits_up_to_four_gpus_of_80_gib(gpus: int) -> None:
    plan = make_plan(shipped("laser_glm4_9b"), gpus, 80)
    assert plan.ok, format_plan(plan)
    assert status(plan, "training memory of stage_1") == status(plan, "training memory of stage_2") == "ok"
    assert text(plan, "ranking memory") == "17.5 GiB of weights on one GPU"
    assert text(plan, "model") == "zai-org/glm-4-9b-hf: not on this machine, downloaded at first use"


def test_16_gpus_want_a_larger_batch_than_the_papers() -> None:
    plan = make_plan(table(), 16, 80)
    told = text(plan, "batch of stage_2")
    assert told.startswith("stage_2.rows_per_step = 4 can't be shared evenly by 16")
    sixteen = table(("stage_1.rows_per_step", "16"), ("stage_2.rows_per_step", "16"))
    assert make_plan(sixteen, 16, 80).ok


def test_24_gib_are_too_few_and_the_remedies_make_it_fit() -> None:
    plan = make_plan(table(), 4, 24)
    told = text(plan, "training memory of stage_1")
    assert not plan.ok and "stage_1.gradient_checkpointing: true" in told
    both = [(f"stage_{n}.gradient_checkpointing", "true") for n in (1, 2)]
    assert make_plan(table(*both), 4, 24).ok


def test_steps_and_work_by_hand() -> None:
    """10,000 users assumed, 10 items each: 7 lines of 65 tokens, 40 of instruction, 32 + 1 virtual ones.

    No logits are made, so a token costs 4 FLOPs a layer parameter and 6 L q s for attention.
    """
    plan = make_plan(table(), 4, 80)
    tokens = 40 + 7 * 65 + 33
    told = f"10,000 prompts of about {tokens} tokens, 4 a step, 37,500 steps in 15 epoch(s)"
    assert line(plan, "corpus laser_1") == told
    assert "12,500 steps in 5 epoch(s)" in line(plan, "corpus laser_2")
    assert line(plan, "step stage_1") == "4 rows of one prompt on 4 ranks"
    each = GLM.layers * (4 * GLM.layer_parameters + 6 * 4096 * tokens)
    total = 15 * 10_000 * tokens
    assert f"{total:,} tokens, {total * each:.1e} FLOPs" in line(plan, "work laser_1")


def test_each_stage_has_its_methods() -> None:
    """no_stage_2 is laser's stage 1, no_stage_1 has no step there."""
    plan = make_plan(shipped("laser/table4_scientific"), 4, 80)
    found = {label.removeprefix("corpus ") for label, _ in plan.arithmetic if label.startswith("corpus")}
    trained = {"laser", "no_moe", "no_mformer", "no_prefix"}
    assert found == {*(f"{n}_1" for n in trained), *(f"{n}_2" for n in trained), "no_stage_1_2"}


def built(config: LaserConfig, method: Method, width: int) -> BiTuning:
    llm = torch.nn.Module()
    return make_network(llm, method, config.bitune, width, 1.0, torch.zeros(HEIGHT), 0)


@pytest.mark.parametrize("key", METHODS)
@pytest.mark.parametrize("mformer", [{}, {"blocks": 3, "experts": 5, "hidden": 96, "heads": 4, "tokens": 7}])
def test_trained_parameters_are_those_of_the_network(key: Any, mformer: dict[str, int]) -> None:
    config, method = laser(bitune={"mformer": mformer}), METHODS[key]
    size = KNOWN["zai-org/glm-4-9b-hf"].__class__(HEIGHT, 48, 2, 2, 2, 64, 64)
    with torch.device("meta"):
        trained = [p.numel() for p in built(config, method, 64).parameters() if p.requires_grad]
    parts = method_parts(config, method, size)
    assert (parts.parameters, parts.largest) == (sum(trained), max(trained))


def test_the_width_is_the_backbones() -> None:
    wide = laser(backbones={"sequential": {"model": "sasrec", "embedding": 48}})
    with torch.device("meta"):
        trained = sum(p.numel() for p in built(wide, METHODS["laser"], 48).parameters())
    size = GLM.__class__(HEIGHT, 48, 2, 2, 2, 64, 64)
    assert method_parts(wide, METHODS["laser"], size).parameters == trained


def test_the_largest_method_counts() -> None:
    bare = make_plan(table(("methods", "[no_mformer, no_prefix]")), 4, 80)
    assert line(bare, "trained stage_1") == f"{33 * 4096:,} parameters, the LLM is frozen", "Table 3: 0.135 M"
    whole = make_plan(shipped("laser/table4_scientific"), 4, 80)
    assert line(whole, "trained stage_1") == line(make_plan(table(), 4, 80), "trained stage_1")


def test_every_rank_holds_the_items(tmp_path: Path) -> None:
    """In float32, whatever the stage of ZeRO."""
    card = tmp_path / "seed_2024/data/card.json"
    card.parent.mkdir(parents=True)
    card.write_text(json.dumps({"measured": {"users": 77, "items": 2**17, "interactions": 770}}))
    plan = make_plan(table(("run_dir", str(tmp_path))), 4, 80)
    assert line(plan, "users") == f"77 to learn from: counted in {card}"
    assert "131,072 texts of about 138 tokens, read 15 times a method" in line(plan, "items")
    assert "2.0 GiB of vectors on every rank" in line(plan, "items")
    assert "constants 2.0" in line(plan, "GiB a rank stage_1")
    setup = Setup(GLM, "bfloat16", 3, 4, 100, 0, 100, False, False, small=SmallParts(1000, 100))
    with_items = Setup(**{**vars(setup), "small": SmallParts(1000, 100, constants=4e9)})
    assert training_memory(with_items).total - training_memory(setup).total == 4e9


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ((("learn.users", "600"),), "600 to learn from: learn.users"),
        ((("learn.share", "0.05"),), "500 to learn from: learn.share"),
        ((("learn.share", "0.05"), ("learn.users", "600")), "500 to learn from: learn.share"),
        ((("learn.share", "0.05"), ("learn.users", "60")), "60 to learn from: learn.share and learn.users"),
        ((), "10,000 to learn from: assumed, the data are not read here; work grows with them"),
    ],
)
def test_users_learned_from(overrides: tuple[tuple[str, str], ...], told: str) -> None:
    plan = make_plan(table(*overrides), 4, 80)
    assert line(plan, "users") == told
    assert line(plan, "corpus laser_1").startswith(told.split()[0])


def test_all_targets_make_more_and_shorter_texts() -> None:
    """Of ten items seven are targets, with three and a half before them on average."""
    config = table(("learn.targets", "all"))
    told = line(make_plan(config, 4, 80), "corpus laser_1")
    assert told.startswith(f"70,000 prompts of about {40 + round(3.5 * 65) + 33} tokens")


DATA = DataSize(1000, 1000, 40.0, "")


@pytest.mark.parametrize(
    ("blocks", "line", "text"),
    [
        ({}, 14, 37 * 14),
        ({"texts": {"history_items": 5}}, 14, 5 * 14),
        ({"texts": {"title_words": 2, "history_items": 1}}, 9, 9),
        ({"data": {"source": "amazon2018", "reviews": "a.json.gz"}}, 65, 37 * 65),
        (
            {
                "data": {"source": "amazon2018", "reviews": "a.json.gz"},
                "texts": {"title_words": 8, "attribute_words": 4, "attributes": ["brand"]},
            },
            32,
            37 * 32,
        ),
    ],
)
def test_texts_by_hand(blocks: dict[str, Any], line: int, text: int) -> None:
    config = laser(**blocks)
    assert line_tokens(config) == line and text_tokens(config, DATA) == 40 + text


def test_attributes_of_tables_are_those_they_have() -> None:
    """Beauty of 2014 has no brands."""
    beauty, bare = (shipped(f"laser/measured_{name}") for name in ("beauty", "scientific"))
    scientific = shipped("laser/measured_scientific", ("texts.attributes", "null"))
    assert isinstance(beauty, LaserConfig) and isinstance(scientific, LaserConfig)
    assert isinstance(bare, LaserConfig)
    assert line_tokens(scientific) - line_tokens(beauty) == 3 + 8
    assert line_tokens(bare) < line_tokens(beauty)


def test_packed_rows_grow_by_prefix_and_suffix() -> None:
    """A row of 512 tokens of text holds as many users as it would without them."""
    config = shipped("laser_quickstart", ("stage_1.pack_length", "512"))
    assert isinstance(config, LaserConfig)
    (first, _) = outline_of(config, KNOWN["smollm2-135m-instruct"]).trainings
    tokens = text_tokens(config, data_size(config))
    assert first.settings.pack_length == -(-512 * (tokens + 9) // tokens)
    assert first.corpora[0].prompts_per_step == pytest.approx(2 * 512 / tokens, rel=0.15)
    assert first.corpora[0].answer_share == 0


def test_what_trains_nothing_needs_no_memory_for_it() -> None:
    plan = make_plan(shipped("laser/figure3_scientific_zero_shot"), 4, 80)
    assert plan.ok and ("tuning", "none: the models of runs/table2_pet/seed_2024 answer") in plan.arithmetic
    assert not any(check.name.startswith(("training memory", "batch")) for check in plan.checks)
    only_second = make_plan(table(("stage_1.epochs", "0")), 4, 80)
    assert status(only_second, "batch") == "ok" and "read 1 times" in line(only_second, "items")


def test_a_long_history_is_told_and_fails_nothing() -> None:
    plan = make_plan(table(("texts.history_items", "200")), 4, 80)
    assert status(plan, "lengths") == "note"
    assert text(plan, "lengths").endswith("stage_1.context is 8192: raise it or lower texts.history_items")
    beyond = make_plan(table(("stage_2.context", "200000")), 4, 80)
    assert "stage_2.context = 200000 is beyond the model's 131072 positions" in text(beyond, "lengths")


def test_bulk_passes_of_vllm_are_planned() -> None:
    plan = make_plan(table(("rank.engine", "vllm")), 4, 80)
    assert plan.ok and "17.5 GiB of weights on one GPU" in text(plan, "bulk memory")
    small = make_plan(table(("rank.engine", "vllm"), ("bulk.max_model_len", "1024")), 4, 80)
    assert "bulk.max_model_len is 1024: raise it" in text(small, "lengths")


def test_both_templates_are_checked() -> None:
    plan = make_plan(shipped("laser/table6_scientific_item"), 4, 80)
    assert text(plan, "templates") == "browsing, browsing_item"
    wrong = make_plan(table(("texts.item_template", "mine.yaml")), 4, 80)
    assert status(wrong, "templates") == "FAIL" and "no such file" in text(wrong, "templates")


def test_the_quickstart_on_a_laptop() -> None:
    plan = make_plan(shipped("laser_quickstart"), 0, 8)
    assert plan.ok and plan.title == "laser_quickstart on 2 CPU ranks that share 8.0 GiB"
    assert status(make_plan(shipped("laser_quickstart"), 0, 2), "training memory of stage_1") == "FAIL"
    assert make_cluster(shipped("laser_quickstart"), 0, 8, 8).ranks == 2


def test_short_epochs_are_planned_as_short() -> None:
    told = line(make_plan(table(("stage_1.epoch_samples", "400")), 4, 80), "corpus laser_1")
    assert told.startswith("400 prompts of about") and "1,500 steps in 15 epoch(s)" in told
