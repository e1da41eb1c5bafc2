"""What the plan says of the shipped configs and of clusters they fit or do not fit."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from recloom.data_shards.errors import UserError
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import read_config
from recloom.trainer.plan import Plan, format_plan, make_plan
from recloom.trainer.planning import outline


@lru_cache
def shipped(name: str, *overrides: tuple[str, str]) -> RunConfig:
    root = Path(__file__).resolve().parents[2]
    return read_config(root / "configs" / f"llama4rec_{name}.yaml", list(overrides))


def status(plan: Plan, name: str) -> str:
    return next(check.status for check in plan.checks if check.name == name)


def text(plan: Plan, name: str) -> str:
    return next(check.text for check in plan.checks if check.name == name)


@pytest.mark.parametrize("name", ["7b", "13b"])
def test_7b_and_13b_fit_16_gpus_of_80_gib(name: str) -> None:
    plan = make_plan(shipped(name, ("data.path", "/nowhere/ml-1m")), 16, 80)
    assert plan.ok and status(plan, "training memory") == "ok"
    # What is not there yet is told and fails nothing: a plan is made on a login node.
    assert status(plan, "data") == "note" and "/nowhere/ml-1m" in text(plan, "data")


def test_70b_does_not_fit_16_gpus_and_each_remedy_makes_it_fit() -> None:
    plan = make_plan(shipped("70b"), 16, 80)
    assert not plan.ok and status(plan, "training memory") == "FAIL"
    told = text(plan, "training memory")
    assert "parallel.offload_optimizer: true" in told and "32 GPUs" in told
    assert make_plan(shipped("70b", ("parallel.offload_optimizer", "true")), 16, 80).ok
    assert make_plan(shipped("70b"), 32, 80).ok


def test_finished_models_need_no_memory_for_training() -> None:
    plan = make_plan(shipped("70b", ("model.tuned", "runs/other")), 16, 160)
    assert plan.ok and ("tuning", "none: the models of runs/other answer") in plan.arithmetic
    assert not {"training memory", "rows", "schedule"} & {check.name for check in plan.checks}


def test_a_system_without_numbers_has_no_plan_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outline, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^system = 'llama4rec': no plan yet, start it with `recloom run`\.$"
    ):
        make_plan(shipped("7b"), 16, 80)


def test_70b_says_what_the_bulk_pass_needs() -> None:
    plan = make_plan(shipped("70b"), 32, 80)
    assert status(plan, "bulk memory") == "note" and "over 2 GPUs" in text(plan, "bulk memory")
    assert status(make_plan(shipped("70b"), 32, 160), "bulk memory") == "ok"


def test_remedies_name_checkpointing_and_shorter_rows() -> None:
    plan = make_plan(shipped("13b", ("training.context", "4096"), ("training.pack_length", "4096")), 16, 48)
    told = text(plan, "training memory")
    assert "training.gradient_checkpointing: true" in told and "training.pack_length: " in told
    shorter = told.split("training.pack_length: ")[1].split(";")[0]
    assert make_plan(shipped("13b", ("training.pack_length", shorter)), 16, 48).ok


def test_rows_that_ranks_cannot_share_fail_with_the_numbers_that_can() -> None:
    plan = make_plan(shipped("7b"), 12, 80)
    assert not plan.ok
    assert text(plan, "batch").endswith("can't be shared evenly by 12 ranks: set it to 12 or 24")
    assert make_plan(shipped("7b", ("training.rows_per_step", "24")), 12, 80).ok


@pytest.mark.parametrize(
    ("name", "value", "check", "told"),
    [
        ("prompts.rating_template", "rating.yaml", "templates", "no such file"),
        ("training.context", "8192", "lengths", "beyond the model's 4096 positions"),
        ("bulk.max_model_len", "5000", "lengths", "beyond the model's 4096 positions"),
    ],
)
def test_failing_checks(name: str, value: str, check: str, told: str) -> None:
    plan = make_plan(shipped("7b", (name, value)), 16, 80)
    assert not plan.ok and status(plan, check) == "FAIL" and told in text(plan, check)


@pytest.mark.parametrize(
    ("name", "value", "check", "told"),
    [
        ("prompts.history_items", "150", "lengths", "raise it or lower prompts.history_items"),
        ("bulk.max_model_len", "1024", "lengths", "bulk.max_model_len is 1024: raise it"),
        ("training.warmup_steps", "5000", "schedule", "lower training.warmup_steps"),
        ("model.path", "someone/unheard-of", "model", "memory was not checked"),
    ],
)
def test_notes_do_not_fail(name: str, value: str, check: str, told: str) -> None:
    plan = make_plan(shipped("7b", (name, value)), 16, 80)
    assert plan.ok and status(plan, check) == "note" and told in text(plan, check)


def test_a_data_folder_that_is_there(tmp_path: Path) -> None:
    plan = make_plan(shipped("7b", ("data.path", str(tmp_path))), 16, 80)
    assert status(plan, "data") == "ok"


def test_the_quickstart_on_a_laptop() -> None:
    plan = make_plan(shipped("quickstart"), 0, 8)
    assert plan.ok and plan.title == "llama4rec_quickstart on 2 CPU ranks that share 8.0 GiB"
    assert not make_plan(shipped("quickstart"), 0, 2).ok
    assert not make_plan(shipped("quickstart", ("parallel.cpu_ranks", "3")), 0, 8).ok


@pytest.mark.parametrize(("gpus", "memory", "node"), [(-1, 80, 8), (1, 0, 8), (1, 80, 0)])
def test_a_cluster_that_cannot_be(gpus: int, memory: float, node: int) -> None:
    with pytest.raises(UserError, match="must be"):
        make_plan(shipped("7b"), gpus, memory, node)


def test_the_printed_plan() -> None:
    lines = format_plan(make_plan(shipped("70b"), 16, 80)).split("\n")
    assert lines[0] == "llama4rec_70b on 16 GPUs of 80 GiB, 2 nodes of 8"
    numbers = [line.split(".")[0].strip() for line in lines if line[:3].strip().isdigit()]
    assert numbers == [str(number) for number in range(1, 9)]
    assert lines[-1] == "Verdict: does not fit: training memory."
    assert any("68,976,648,192" in line for line in lines)


def test_the_verdict_points_to_the_notes_and_claims_no_check_that_was_not_made() -> None:
    assert format_plan(make_plan(shipped("quickstart"), 2, 80)).endswith("Verdict: fits.")
    told = format_plan(make_plan(shipped("70b"), 32, 80))
    assert "Verdict: fits (see the notes: " in told and told.endswith("bulk memory).")
    unknown = format_plan(make_plan(shipped("7b", ("model.path", "someone/unheard-of")), 16, 80))
    assert "Verdict: nothing wrong found, but memory was not checked (see the notes: " in unknown
