"""The fault drill: what it draws, what it notices, and a whole one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from recloom.data_shards.errors import UserError
from recloom.tools import fault_figure
from recloom.tools.fault_aim import AIMS, Moments, draw, unfinished
from recloom.tools.fault_drill import Drill, fault_of_end, missed
from recloom.tools.fault_twin import EPOCHS, SAMPLES, Twin

STEPS = 12


def rows_of(steps: int = STEPS) -> list[dict[str, Any]]:
    samples = EPOCHS * SAMPLES // STEPS
    return [{"step": n + 1, "loss": 6 - n / 10, "samples": samples, "seconds": n} for n in range(steps)]


def write_twin(work: Path, name: str, rows: list[dict[str, Any]], model: bytes = b"weights") -> Twin:
    """What a training leaves behind, by hand."""
    twin = Twin(work, name)
    (twin.tuned / "model").mkdir(parents=True)
    (twin.tuned / "model/model.safetensors").write_bytes(model)
    (twin.tuned / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return twin


def test_kills_are_drawn_by_seed_and_number_with_the_stated_odds() -> None:
    assert sum(aim.odds for aim in AIMS.values()) == 100
    shots = [draw(7, number) for number in range(2000)]
    assert shots == [draw(7, number) for number in range(2000)] != [draw(8, number) for number in range(2000)]
    assert {shot.rank for shot in shots} == {0, 1}
    for name, count in Counter(shot.aim for shot in shots).items():
        assert abs(count / 20 - AIMS[name].odds) < 4
    assert all(0 <= shot.delay <= AIMS[shot.aim].span for shot in shots)
    assert {shot.skip for shot in shots if shot.aim == "checkpoint"} == {0, 1, 2}


def test_a_training_that_is_as_it_should_be(tmp_path: Path) -> None:
    reference = write_twin(tmp_path, "reference", rows_of())
    late = [{**row, "seconds": 9.0} for row in rows_of()]
    assert fault_of_end(write_twin(tmp_path, "same", late), reference) is None


@pytest.mark.parametrize(
    ("rows", "model", "said"),
    [
        ([*rows_of()[:5], *rows_of()[4:]], b"weights", "a step is missing, or there twice"),
        ([*rows_of()[:5], *rows_of()[6:]], b"weights", "a step is missing, or there twice"),
        ([*rows_of()[:-1], {**rows_of()[-1], "samples": 23}], b"weights", "not each one once an epoch"),
        ([*rows_of()[:-1], {**rows_of()[-1], "loss": 4.9000001}], b"weights", "metrics.jsonl differs from"),
        (rows_of(), b"other weights", "model differs from"),
    ],
)
def test_what_was_lost_or_done_twice_is_noticed(
    rows: list[dict[str, Any]], model: bytes, said: str, tmp_path: Path
) -> None:
    reference = write_twin(tmp_path, "reference", rows_of())
    fault = fault_of_end(write_twin(tmp_path, "round_0", rows, model), reference)
    assert fault is not None and said in fault


def test_the_moment_of_a_checkpoint(tmp_path: Path) -> None:
    """One that an earlier start left torn does not count, one that is written now does, once."""
    twin = write_twin(tmp_path, "round_0", [])
    old, new = (twin.checkpoints / name for name in ("step_3", "step_6"))
    old.mkdir(parents=True)
    os.utime(old, (1, 1))
    moments = Moments(twin, cast(Any, None), time.time() - 5)
    assert not moments.checkpoint() and set(unfinished(twin.checkpoints)) == {"step_3"}
    new.mkdir()
    assert moments.checkpoint() and not moments.checkpoint()
    (new / "manifest.json").write_text("{}")
    assert set(unfinished(twin.checkpoints)) == {"step_3"}


def test_the_moment_of_a_step(tmp_path: Path) -> None:
    """Lines behind the checkpoint are dropped first; only what grows is a step."""
    twin = write_twin(tmp_path, "round_0", rows_of(5))
    moments = Moments(twin, cast(Any, None), 0.0)
    assert not moments.step() and not moments.step()
    for steps, grew in ((3, False), (3, False), (4, True)):
        (twin.tuned / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(steps)))
        assert moments.step() == grew


def kill_row(seed: int, number: int, torn: bool) -> dict[str, Any]:
    return {"seed": seed, "kill": number, "round": 0, "aim": "step", "steps": 4, "torn": ["step_3"] * torn}


def test_rows_of_another_seed_are_not_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "drill.jsonl"
    out.write_text(json.dumps(kill_row(3, 0, False)) + "\n")
    with pytest.raises(UserError, match="--seed 4: .* is of another seed"):
        Drill(out, 4)


def test_a_kill_that_came_too_late_is_aimed_otherwise() -> None:
    """The same shot again would miss for ever on a machine that is quicker than its delay."""
    end = {"seed": 3, "round": 0, "steps": 36}
    rows = [kill_row(3, 0, False), end, end]
    assert [missed(rows[:count]) for count in range(4)] == [0, 0, 1, 2]
    shots = [draw(3, 1, misses) for misses in range(50)]
    assert shots[0] == draw(3, 1) and {shot.number for shot in shots} == {1}
    assert len(set(shots)) > 40 and {shot.aim for shot in shots} == set(AIMS)


def test_the_figure(tmp_path: Path) -> None:
    end = {"seed": 3, "round": 0, "steps": 36}
    rows = [kill_row(3, 0, False), kill_row(3, 1, True), end, {**end, "round": 1}]
    assert fault_figure.kills_before(rows) == [0, 1, 2, 2]
    fault_figure.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def drill(repo_root: Path, out: Path, kills: int) -> str:
    command = [
        sys.executable,
        "tools/fault_drill.py",
        "--kills",
        str(kills),
        "--seed",
        "5",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_twenty_kills_change_nothing(repo_root: Path, tmp_path: Path) -> None:
    """In two parts: a drill goes on where it was interrupted."""
    out = tmp_path / "drill.jsonl"
    drill(repo_root, out, 3)
    rows = out.read_text().splitlines()
    printed = drill(repo_root, out, 20)
    assert printed.splitlines()[-1].startswith("20 kills (") and out.read_text().splitlines()[:3] == rows[:3]
    found = [json.loads(line) for line in out.read_text().splitlines()]
    kills = [row for row in found if "kill" in row]
    assert [row["kill"] for row in kills] == list(range(20)) and len({row["aim"] for row in kills}) >= 3
    assert any(row["torn"] for row in kills), "some kill falls into the writing of a checkpoint"
    assert all(row["equal"] for row in found if "kill" not in row)
    shutil.rmtree(out.with_suffix(""))
