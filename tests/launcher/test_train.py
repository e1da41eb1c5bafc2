"""`deepspeed launcher/train.py` as a user types it: two ranks, a killed rank, a resumed training."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small_recipe import small_config, write_config

DEEPSPEED = str(Path(sys.executable).parent / "deepspeed")


def start(repo_root: Path, config: Path, log: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = [DEEPSPEED, "launcher/train.py", "--config", str(config), *overrides]
    with open(log, "wb") as file:
        return subprocess.Popen(command, cwd=repo_root, stdout=file, stderr=subprocess.STDOUT)


def metric_lines(folder: Path) -> list[dict[str, float]]:
    path = folder / "tune/llama4rec/metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in metric_lines(folder) if "loss" in row]


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The training processes below the launcher."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        if any(word.endswith("launcher/train.py") for word in child.cmdline()[:4]) and not child.children():
            found.append(child)
    return found


@pytest.fixture(scope="module")
def uninterrupted(repo_root: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole training by the command of the README."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    config = write_config(folder / "config.yaml", small_config(folder / "run", tiny_llama))
    before = set(os.listdir("/dev/shm"))
    process = start(repo_root, config, folder / "log.txt")
    assert process.wait(timeout=400) == 0, (folder / "log.txt").read_text()[-4000:]
    left = {name for name in set(os.listdir("/dev/shm")) - before if "deepspeed" in name}
    assert left == set(), "the launch leaks shared memory"
    return folder


def test_two_ranks_train_and_export(uninterrupted: Path) -> None:
    log = (uninterrupted / "log.txt").read_text()
    assert "on 2 ranks" in log
    rows = losses(uninterrupted / "run")
    assert [step for step, _, _ in rows] == list(range(1, len(rows) + 1)) and len(rows) >= 8
    assert rows[-1][1] < rows[0][1] - 1, "the loss of a random model falls fast"
    assert any("validation_loss" in row for row in metric_lines(uninterrupted / "run"))


def test_export_loads_in_transformers(uninterrupted: Path, tiny_llama: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = uninterrupted / "run/tune/llama4rec/model"
    tuned = AutoModelForCausalLM.from_pretrained(folder)
    start_model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 2
    changed = [
        name
        for (name, tuned_tensor), start_tensor in zip(
            tuned.named_parameters(), start_model.parameters(), strict=True
        )
        if not torch.equal(tuned_tensor, start_tensor)
    ]
    assert len(changed) == len(list(tuned.parameters())), "full-parameter tuning changes every tensor"


def test_killed_rank_ends_the_launch_and_resume_is_bit_equal(
    repo_root: Path, tiny_llama: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", small_config(tmp_path / "run", tiny_llama))
    process = start(repo_root, config, tmp_path / "first.txt")
    wait_for(process, lambda: len(losses(tmp_path / "run")) >= 3, tmp_path / "first.txt")
    victim = ranks_of(process)[-1]
    victim.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    assert process.wait(timeout=120) != 0, "a killed rank must not look like success"
    assert time.monotonic() - killed < 60
    assert not (tmp_path / "run/stages/tune.json").exists()
    before = len(losses(tmp_path / "run"))
    assert before < len(losses(uninterrupted / "run"))

    process = start(repo_root, config, tmp_path / "second.txt")
    assert process.wait(timeout=400) == 0, (tmp_path / "second.txt").read_text()[-4000:]
    assert "resuming after step" in (tmp_path / "second.txt").read_text()
    assert losses(tmp_path / "run") == losses(uninterrupted / "run")
    names = ["run/tune/llama4rec/model/model.safetensors"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_a_rank_less_continues_a_killed_training(
    repo_root: Path, tiny_llama: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """The same command with other ranks: the samples and losses of two ranks that nobody killed."""
    config = write_config(tmp_path / "config.yaml", small_config(tmp_path / "run", tiny_llama))
    process = start(repo_root, config, tmp_path / "first.txt")
    wait_for(process, lambda: len(losses(tmp_path / "run")) >= 3, tmp_path / "first.txt")
    ranks_of(process)[0].send_signal(signal.SIGKILL)
    assert process.wait(timeout=120) != 0, "a killed rank must not look like success"
    process = start(repo_root, config, tmp_path / "second.txt", "--parallel.cpu_ranks", "1")
    assert process.wait(timeout=400) == 0, (tmp_path / "second.txt").read_text()[-4000:]
    log = (tmp_path / "second.txt").read_text()
    assert log.count("written by 2 ranks with parallel.tensor = 1, converted for 1 rank with") == 1
    assert re.search(r"on 1 ranks, resuming after step \d", log)
    found, wanted = (
        [row for row in metric_lines(folder) if "loss" in row]
        for folder in (tmp_path / "run", uninterrupted / "run")
    )
    assert [(row["step"], row["samples"]) for row in found] == [
        (row["step"], row["samples"]) for row in wanted
    ]
    assert max(abs(one["loss"] - two["loss"]) for one, two in zip(found, wanted, strict=True)) < 1e-5


def test_finished_training_is_skipped(repo_root: Path, uninterrupted: Path) -> None:
    log = uninterrupted / "again.txt"
    process = start(repo_root, uninterrupted / "config.yaml", log)
    assert process.wait(timeout=200) == 0
    assert "finished, skipped" in log.read_text()


def test_infinite_loss_stops_all_ranks_before_the_step(
    repo_root: Path, uninterrupted: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """A weight that is not finite makes the first loss nan: no rank may take the step."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(broken)
    config = write_config(tmp_path / "config.yaml", small_config(tmp_path / "run", broken))
    process = start(repo_root, config, tmp_path / "log.txt")
    assert process.wait(timeout=400) != 0
    log = (tmp_path / "log.txt").read_text()
    assert "step 1: the loss is nan, the weights were not touched" in log
    assert "Samples of the step: [" in log
    assert losses(tmp_path / "run") == []


def test_mistakes_end_with_code_2_and_one_sentence_each(repo_root: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", small_config(tmp_path / "run", tmp_path / "nowhere"))
    script = [sys.executable, "launcher/train.py", "--config", str(config)]
    done = subprocess.run(
        [*script, "--training.epocs", "3", "--training.rows_per_step=-1"],
        cwd=repo_root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 2 and "did you mean 'epochs'?" in done.stderr
