"""A training across two real nodes: asked to leave, a rank killed, the link cut, a node stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from small_recipe import small_config, write_config
from two_nodes import (
    ADDRESSES,
    INTERFACE,
    RECLOOM,
    Network,
    Started,
    network,
    reason_against,
    start_node,
    wait_until,
)

from recloom.data_shards.artifacts import cache_dir

REASON = reason_against()
pytestmark = [pytest.mark.skipif(REASON is not None, reason=REASON or ""), pytest.mark.timeout(1800)]

WATCH_SECONDS = 20
NOTICED_SECONDS = 60  # what the job is promised to end in
LONG = 400  # seconds that a busy machine may take for what takes ten


@pytest.fixture(scope="module")
def nodes() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture(scope="module")
def prepared(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two YAMLs and a run whose inputs are made."""
    folder = tmp_path_factory.mktemp("two_nodes")
    config = small_config(folder / "run", tiny_llama, checkpoint_every=1, evaluate_every=0)
    write_config(folder / "config.yaml", config)
    cluster = {
        "kind": "per_node",
        "shared": str(folder),
        "interface": INTERFACE,
        "watch_seconds": WATCH_SECONDS,
        "start_seconds": LONG,
        "nodes": [{"address": address, "cpu_ranks": 1} for address in ADDRESSES],
        "environment": {"RECLOOM_CACHE": str(cache_dir()), "OMP_NUM_THREADS": "1"},
        "health": {"min_disk_gb": 0.1, "min_bandwidth_mbit": 1},
    }
    write_config(folder / "cluster.yaml", cluster)
    made = [*RECLOOM, "run", str(folder / "config.yaml"), "--until", "instructions"]
    subprocess.run(made, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(repo_root: Path, prepared: Path) -> list[tuple[int, float, float]]:
    """The losses of two ranks of one machine, without a cluster."""
    folder = prepared / "alone"
    shutil.copytree(prepared / "run", folder)
    script = str(repo_root / "launcher/train.py")
    command = [sys.executable, script, "--config", str(prepared / "config.yaml"), "--run_dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=repo_root)
    return losses(folder)


def losses(folder: Path) -> list[tuple[int, float, float]]:
    path = folder / "tune/llama4rec/metrics.jsonl"
    lines = (
        [line for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.is_file() else []
    )
    rows = [json.loads(line) for line in lines]
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in rows if "loss" in row]


def both(nodes: Network, folder: Path, name: str, *arguments: str) -> list[Started]:
    return [
        start_node(
            nodes,
            node,
            folder / "config.yaml",
            folder / "cluster.yaml",
            folder / f"{name}_{node}.txt",
            "--training-only",
            *arguments,
        )
        for node in (0, 1)
    ]


def logs(started: list[Started]) -> str:
    return "\n".join(f"--- node {number}\n{one.text()[-4000:]}" for number, one in enumerate(started))


def reach(started: list[Started], folder: Path, step: int) -> None:
    def there() -> bool:
        assert all(one.process.poll() is None for one in started), logs(started)
        return len(losses(folder)) >= step

    wait_until(there, LONG, lambda: logs(started))


def hears(one: Started, sentence: str, started: list[Started]) -> None:
    """The sentence comes in time."""
    wait_until(lambda: sentence in one.text(), NOTICED_SECONDS, lambda: f"{sentence!r}\n{logs(started)}")


def exit_codes(started: list[Started], seconds: float) -> list[int]:
    wait_until(lambda: all(one.process.poll() is not None for one in started), seconds, lambda: logs(started))
    return [one.process.returncode for one in started]


def processes_of(folder: Path) -> list[list[str]]:
    """What is still running of a launch."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if process.pid != os.getpid() and any(str(folder / "launch") in word for word in words):
            found.append(words)
    return found


def test_faults_end_in_time_with_the_rank_named_and_resume_to_the_same_losses(
    nodes: Network, prepared: Path, uninterrupted: list[tuple[int, float, float]]
) -> None:
    run = prepared / "run"
    whole = len(uninterrupted)
    assert whole >= 16

    # Asked to leave on one node: both leave behind a checkpoint of the same step, to be started again.
    started = both(nodes, prepared, "leave")
    reach(started, run, 2)
    assert_bound(nodes)
    started[1].process.terminate()
    assert exit_codes(started, NOTICED_SECONDS) == [75, 75]
    steps = len(losses(run))
    assert json.loads((run / "tune/llama4rec/checkpoints/latest.json").read_text())["step"] == steps
    assert f"the checkpoint of step {steps} is written" in started[0].text()

    # A killed rank ends both nodes, and both say which it was.
    started = both(nodes, prepared, "kill")
    reach(started, run, steps + 2)
    assert f"resuming after step {steps}" in started[0].text()
    started[1].rank().kill()
    assert exit_codes(started, NOTICED_SECONDS) == [1, 1]
    assert f"rank 1 (node 1, {ADDRESSES[1]}) is gone" in started[0].text()
    assert processes_of(run) == []

    # With restarts: a cut link, seen from both sides, then a node that stands still.
    started = both(nodes, prepared, "cut", "--restarts", "2")
    reach(started, run, len(losses(run)) + 2)
    nodes.link("down")
    hears(started[0], f"rank 1 (node 1, {ADDRESSES[1]}) is without a sign of life for", started)
    hears(started[1], f"rank 0 (node 0, {ADDRESSES[0]}) is", started)
    for one in started:
        hears(one, "launch: start 1 of 3 ended with exit code 1", started)
    nodes.link("up")
    reach(started, run, len(losses(run)) + 2)

    started[1].send_all(signal.SIGSTOP)
    hears(started[0], "launch: start 2 of 3 ended with exit code 1", started)
    assert started[0].text().count(f"rank 1 (node 1, {ADDRESSES[1]}) is without a sign of life") == 2
    assert len(losses(run)) < whole
    started[1].send_all(signal.SIGCONT)
    assert exit_codes(started, LONG) == [0, 0], logs(started)
    # Other sockets add the same gradients up in another order now and then.
    assert [step for step, *_ in losses(run)] == [step for step, *_ in uninterrupted]
    np.testing.assert_allclose(losses(run), uninterrupted, rtol=1e-6)
    assert processes_of(run) == []


def assert_bound(nodes: Network) -> None:
    """Everything that listens does so on the configured interface."""
    for node, address in enumerate(ADDRESSES):
        own = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
        found = nodes.listening(node)
        assert found and set(found) == {own}, (node, found)


def test_a_slow_link_is_told_before_the_start(nodes: Network, prepared: Path, tmp_path: Path) -> None:
    cluster = yaml.safe_load((prepared / "cluster.yaml").read_text())
    cluster["health"] = {"min_disk_gb": 0.1, "min_bandwidth_mbit": 10**7}
    write_config(tmp_path / "cluster.yaml", cluster)
    arguments = ("--run_dir", str(prepared / "slow"))
    started = [
        start_node(
            nodes,
            node,
            prepared / "config.yaml",
            tmp_path / "cluster.yaml",
            tmp_path / f"{node}.txt",
            *arguments,
        )
        for node in (0, 1)
    ]
    assert exit_codes(started, LONG) == [2, 2]
    for one in started:
        assert "Mbit/s to node 0, health.min_bandwidth_mbit = 1e+07" in one.text(), logs(started)
    assert not list((prepared / "slow").rglob("health-*"))
