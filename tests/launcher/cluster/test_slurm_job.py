"""The scripts for Slurm at work: a scheduler of three shell scripts, and real processes for two nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_recipe import small_config, write_config

from recloom.data_shards.artifacts import cache_dir
from recloom.launcher.ranks import free_port

# Runs a job at once, again as often as it was put back into the queue; the last of the three is only noted.
SBATCH = """
script="${@: -1}"
echo "$script" >> "$NOTES/submitted"
export SLURM_JOB_ID=7 SLURM_JOB_NODELIST=a,b SLURM_RESTART_COUNT=0
[[ $script == *rest.sbatch ]] && { echo 7; exit; }
while true; do
    rm -f "$NOTES/again"
    bash "$script" >> "$NOTES/$(basename $script).txt" 2>&1; code=$?
    [ -f "$NOTES/again" ] || break
    SLURM_RESTART_COUNT=$((SLURM_RESTART_COUNT + 1))
done
echo "$code" > "$NOTES/$(basename $script).code"
echo 7
exit $code
"""
# One task a node; its exit code is the highest of theirs.
SRUN = """
[ "$1" = --kill-on-bad-exit=0 ] || exit 9
shift
for node in 0 1; do SLURM_NODEID=$node "$@" & tasks[$node]=$!; done
worst=0
for node in 0 1; do wait ${tasks[$node]}; code=$?; [ $code -gt $worst ] && worst=$code; done
exit $worst
"""
SCONTROL = """
echo "$*" >> "$NOTES/scontrol"
[ "$1" = requeue ] && touch "$NOTES/again"
"""


@pytest.mark.timeout(1800)
def test_a_warned_job_leaves_behind_a_checkpoint_and_goes_on_from_the_queue(
    tiny_llama: Path, tmp_path: Path
) -> None:
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{script}")
        path.chmod(0o755)
    run = tmp_path / "run"
    config = small_config(run, tiny_llama, checkpoint_every=0, evaluate_every=0, epochs=1)
    write_config(tmp_path / "config.yaml", config)
    cluster = {
        "kind": "slurm",
        "shared": str(tmp_path),
        "interface": "lo",
        "port": free_port(),
        "nodes": 2,
        "cpu_ranks": 1,
        "time_limit": "10",
        "environment": {"RECLOOM_CACHE": str(cache_dir()), "OMP_NUM_THREADS": "1"},
        "health": {"min_disk_gb": 0.1},
    }
    write_config(tmp_path / "cluster.yaml", cluster)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "NOTES": str(tmp_path)}
    command = [sys.executable, "-m", "recloom.launcher.cli", "launch", str(tmp_path / "config.yaml")]
    submitted = subprocess.Popen([*command, "--cluster", str(tmp_path / "cluster.yaml")], env=environment)

    deadline = time.monotonic() + 900
    while steps(run) < 2:
        assert submitted.poll() is None and time.monotonic() < deadline, told(tmp_path)
        time.sleep(0.05)
    warn(submitted.pid)
    assert submitted.wait(timeout=900) == 0, told(tmp_path)

    log = told(tmp_path)
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"
    assert log.count("launch: 2 nodes are well") == 2
    assert "resuming after step" in log and "is written: the same command continues" in log
    assert (tmp_path / "train.sbatch.code").read_text() == "0\n"
    assert (run / "stages/tune.json").is_file()
    assert [Path(line).name for line in (tmp_path / "submitted").read_text().splitlines()] == [
        "inputs.sbatch",
        "train.sbatch",
        "rest.sbatch",
    ]


def steps(run: Path) -> int:
    path = run / "tune/llama4rec/metrics.jsonl"
    lines = path.read_text().splitlines(True) if path.is_file() else []
    return sum("loss" in json.loads(line) for line in lines if line.endswith("\n"))


def warn(submitted: int) -> None:
    """As Slurm does before the time is up: SIGUSR1 to every process of the step."""
    for process in psutil.Process(submitted).children(recursive=True):
        line = " ".join(process.cmdline())
        if "--node " in line and "srun" not in line or "deepspeed" in line or "launcher/train.py" in line:
            process.send_signal(signal.SIGUSR1)


def told(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.sbatch.txt")))
