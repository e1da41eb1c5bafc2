"""What the plan says of A-LLMRec: the paper's GPUs, smaller ones, and configs that train nothing."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import pytest

from recloom.data_shards.errors import UserError
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import read_config
from recloom.trainer.plan import Plan, format_plan, make_plan

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OPT = "facebook/opt-6.7b: not on this machine, downloaded at first use"


@lru_cache
def shipped(name: str, *overrides: tuple[str, str]) -> RunConfig:
    """The run folder is nowhere: a finished run here must not change what a plan says."""
    return read_config(CONFIGS / f"{name}.yaml", [("run_dir", "/nowhere/runs"), *overrides])


def beauty(*overrides: tuple[str, str]) -> RunConfig:
    return shipped("a_llmrec/table1_beauty", *overrides)


def status(plan: Plan, name: str) -> str:
    return next(check.status for check in plan.checks if check.name == name)


def text(plan: Plan, name: str) -> str:
    return next(check.text for check in plan.checks if check.name == name)


def line(plan: Plan, name: str) -> str:
    return next(told for label, told in plan.arithmetic if label == name)


@pytest.mark.parametrize("name", ["beauty", "games", "toys"])
def test_one_a6000_was_enough_for_all_but_movies(name: str) -> None:
    """Section 5.1 of the paper."""
    plan = make_plan(shipped(f"a_llmrec/table1_{name}"), 1, 48)
    assert plan.ok, format_plan(plan)
    assert status(plan, "training memory of project") == status(plan, "training memory of lora") == "ok"
    assert status(plan, "ranking memory") == "ok" and text(plan, "model") == OPT


def test_movies_had_four() -> None:
    plan = make_plan(shipped("a_llmrec_opt_6_7b"), 4, 48)
    assert plan.ok, format_plan(plan)
    assert line(plan, "users").startswith("297,498 to learn from: A-LLMRec, Table 10")


def test_12_gib_are_too_few_and_the_remedy_makes_it_fit() -> None:
    plan = make_plan(beauty(), 1, 12)
    told = text(plan, "training memory of project")
    assert not plan.ok and status(plan, "training memory of lora") == "FAIL"
    assert told.endswith("it does not fit, but would with 4 GPUs (project.rows_per_step: a multiple of 4)")
    assert "run the stage rank on a GPU of 14.0 GiB or more" in text(plan, "ranking memory")
    assert make_plan(beauty(), 4, 12).ok and not make_plan(beauty(), 2, 12).ok


def test_remedies_name_the_block() -> None:
    told = text(make_plan(beauty(), 1, 18), "training memory of lora")
    assert "lora.gradient_checkpointing: true" in told
    checkpointed = beauty(("lora.gradient_checkpointing", "true"))
    assert status(make_plan(checkpointed, 1, 19), "training memory of lora") == "ok"


def test_16_gpus_want_a_larger_batch_than_the_papers() -> None:
    plan = make_plan(beauty(), 16, 80)
    assert text(plan, "batch of project").startswith("project.rows_per_step = 4 can't be shared evenly by 16")
    sixteen = beauty(("project.rows_per_step", "16"), ("lora.rows_per_step", "16"))
    assert make_plan(sixteen, 16, 80).ok


def test_steps_and_work_by_hand() -> None:
    """9,930 users, four questions a step, five epochs: ceil(9930 / 4) * 5 steps.

    A question has 31 titles of 25 tokens, 27 words, 6 for the user, 30 vectors: 838. A token costs 4 FLOPs
    a layer parameter, 6 L h s for attention, and 4 V h at the 25 of its answer.
    """
    plan = make_plan(beauty(), 1, 48)
    assert "9,930 prompts of about 838 tokens, 4 a step, 12,415 steps" in line(plan, "corpus a_llmrec")
    layers, hidden, vocab, tokens = 32, 4096, 50272, 838
    layer = 4 * hidden**2 + 2 * hidden * 16384 + 4 * hidden + 16384 + hidden + 4 * hidden
    each = 4 * layers * layer + 6 * layers * hidden * tokens + 4 * vocab * hidden * 25 / tokens
    flops = 5 * 9930 * tokens * each
    told = line(plan, "work a_llmrec")
    assert f"{5 * 9930 * tokens:,} tokens, {flops:.1e} FLOPs, 0 GB moved" in told
    assert f"some {flops / (0.2 * 312e12) / 3600:.1f} h" in told


def test_all_items_make_more_questions() -> None:
    """6.44 interactions a user, less test, validation and the first."""
    plan = make_plan(shipped("a_llmrec/table8_beauty_all"), 1, 48)
    assert f"{63_953 - 3 * 9_930:,} prompts" in line(plan, "corpus a_llmrec")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ((("project.users", "600"),), "600 to learn from: project.users"),
        ((("scenario.name", "few_shot_128"),), "128 to learn from: scenario.name"),
        ((("data.reviews", "my.json.gz"),), "10,000 to learn from: assumed"),
    ],
)
def test_users_learned_from(overrides: tuple[tuple[str, str], ...], told: str) -> None:
    assert line(make_plan(beauty(*overrides), 1, 48), "users").startswith(told)


def test_users_of_prepared_data_are_counted(tmp_path: Path) -> None:
    """In the first seed's folder."""
    card = tmp_path / "seed_2024/data/card.json"
    card.parent.mkdir(parents=True)
    card.write_text(json.dumps({"measured": {"users": 77, "items": 9, "interactions": 770}}))
    plan = make_plan(beauty(("run_dir", str(tmp_path))), 1, 48)
    assert line(plan, "users") == f"77 to learn from: counted in {card}"


def test_fewer_candidates_and_shorter_titles_make_shorter_questions() -> None:
    short = beauty(("project.negatives", "4"), ("prompts.title_words", "5"))
    tokens = 13 * (10 + 5 + 1) + 27
    assert f"about {tokens} tokens" in line(make_plan(short, 1, 48), "corpus tallrec")
    assert f"about {tokens + 6 + 15} tokens" in line(make_plan(short, 1, 48), "corpus a_llmrec")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("table5_movies_to_games", "none: the models of runs/table1_movies/seed_2024 answer"),
        ("table1_movies_morec", "none: the LLM answers as it is"),
    ],
)
def test_what_trains_nothing_needs_no_memory_for_it(name: str, told: str) -> None:
    plan = make_plan(shipped(f"a_llmrec/{name}"), 1, 48)
    assert plan.ok and ("tuning", told) in plan.arithmetic
    assert not any(check.name.startswith(("training memory", "batch")) for check in plan.checks)
    assert "Verdict: fits" in format_plan(plan)


def test_a_long_history_is_told_and_fails_nothing() -> None:
    plan = make_plan(beauty(("prompts.history_items", "40")), 1, 48)
    assert plan.ok and status(plan, "lengths") == "note"
    assert text(plan, "lengths").endswith("project.context is 2048: raise it or lower prompts.history_items")
    alone = make_plan(beauty(("methods", "[llm_only]"), ("prompts.history_items", "40")), 1, 48)
    assert "the model has 2048 positions: lower prompts.history_items" in text(alone, "lengths")


def test_a_context_beyond_opt_fails() -> None:
    plan = make_plan(beauty(("lora.context", "4096")), 1, 48)
    assert "lora.context = 4096 is beyond the model's 2048 positions" in text(plan, "lengths")
    assert not plan.ok


def test_bulk_passes_of_vllm_are_planned() -> None:
    bulk = (("rank.engine", "vllm"), ("methods", "[a_llmrec]"))
    plan = make_plan(beauty(*bulk), 1, 48)
    assert plan.ok and "12.4 GiB of weights on one GPU" in text(plan, "bulk memory")
    small = make_plan(beauty(*bulk, ("bulk.max_model_len", "1024")), 1, 48)
    assert "bulk.max_model_len is 1024: raise it" in text(small, "lengths")


def test_layers_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(UserError, match=r"^lora\.modules: o_proj named, no layer of this model: choose from"):
        make_plan(beauty(("lora.modules", "[q_proj, o_proj]")), 1, 48)


def test_an_unknown_template_fails() -> None:
    plan = make_plan(beauty(("prompts.template", "mine.yaml")), 1, 48)
    assert status(plan, "templates") == "FAIL" and "no such file" in text(plan, "templates")


def test_the_quickstart_on_a_laptop() -> None:
    plan = make_plan(shipped("a_llmrec_quickstart"), 0, 8)
    assert plan.ok and plan.title == "a_llmrec_quickstart on 2 CPU ranks that share 8.0 GiB"
    assert status(make_plan(shipped("a_llmrec_quickstart"), 0, 2), "training memory") == "FAIL"
