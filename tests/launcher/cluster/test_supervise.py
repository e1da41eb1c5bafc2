"""A start that failed is seen, made again and leaves nothing behind, whatever its exit code says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from recloom.launcher.cluster import supervise
from recloom.launcher.cluster.supervise import Supervisor, ask_group, train
from recloom.launcher.cluster.watch import REQUEUE


class Training:
    """Stands for a job: finished when its marker is there."""

    def __init__(self, marker: Path, restarts: int) -> None:
        self.marker = marker
        self.restarts = restarts


@pytest.fixture
def markers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "training_finished", lambda job: job.marker.exists())
    monkeypatch.setattr(supervise, "MARKER_SECONDS", 0.5)


def run(tmp_path: Path, script: str, restarts: int = 0, supervisor: Supervisor | None = None) -> int:
    job = Training(tmp_path / "marker", restarts)
    made = supervisor or Supervisor(5)
    return train(job, made, ["bash", "-c", script], dict(os.environ), ask_group)  # type: ignore[arg-type]


def test_a_good_exit_code_without_the_marker_is_a_failure(tmp_path: Path, markers: None) -> None:
    assert run(tmp_path, "exit 0") == 1
    assert run(tmp_path, f"touch {tmp_path}/marker; exit 247") == 0


def test_it_starts_again_as_often_as_allowed(
    tmp_path: Path, markers: None, capfd: pytest.CaptureFixture[str]
) -> None:
    script = f"echo x >> {tmp_path}/n; [ $(wc -l < {tmp_path}/n) -eq 3 ] && touch {tmp_path}/marker; exit 1"
    assert run(tmp_path, script, restarts=1) == 1
    told = capfd.readouterr().out
    assert "start 1 of 2 ended with exit code 1 before the training was done: starting again" in told
    assert "start 2 of 2 ended with exit code 1 before the training was done: no restart is left" in told
    assert run(tmp_path, script, restarts=1) == 0


def test_bad_input_and_a_request_to_leave_are_not_tried_again(tmp_path: Path, markers: None) -> None:
    for code in (2, REQUEUE):
        assert run(tmp_path, f"echo x >> {tmp_path}/{code}; exit {code}", restarts=5) == code
        assert (tmp_path / str(code)).read_text() == "x\n"


def test_what_a_start_leaves_running_ends_with_it(tmp_path: Path, markers: None) -> None:
    assert run(tmp_path, f"sleep 300 & echo $! > {tmp_path}/orphan; exit 1") == 1
    orphan = int((tmp_path / "orphan").read_text())
    deadline = time.monotonic() + 30
    while psutil.pid_exists(orphan) and psutil.Process(orphan).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_request_reaches_the_ranks_and_not_the_launchers_between(tmp_path: Path, markers: None) -> None:
    """Python and bash alike die of SIGUSR1 unless it is ignored when they start."""
    rank = "import signal,sys,time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75)); time.sleep(60)"
    supervisor = Supervisor(30)
    threading.Timer(2, supervisor.ask).start()
    assert run(tmp_path, f'{sys.executable} -c "{rank}"; exit $?', 3, supervisor) == REQUEUE


def test_who_does_not_leave_in_time_is_ended(tmp_path: Path, markers: None) -> None:
    supervisor = Supervisor(1)
    supervisor.ask()
    started = time.monotonic()
    assert run(tmp_path, "sleep 300", 0, supervisor) == REQUEUE
    assert time.monotonic() - started < 60


def test_ranks_end_with_a_start_that_is_killed(tmp_path: Path) -> None:
    """Also where a process between them dies without passing it on."""
    rank = (
        "import os, sys, time\n"
        "from recloom.launcher.processes import leave_with\n"
        "leave_with(int(sys.argv[1]), os._exit)\n"
        "open(sys.argv[2], 'w').write(str(os.getpid()))\n"
        "time.sleep(300)\n"
    )
    script = tmp_path / "rank.py"
    script.write_text(rank)
    between = f"{sys.executable} {script} $$ {tmp_path}/pid & sleep 300"
    process = subprocess.Popen(["bash", "-c", between], start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = psutil.Process(int((tmp_path / "pid").read_text()))
    group = os.getpgid(process.pid)
    try:
        process.kill()
        process.wait()
        found.wait(timeout=60)
    finally:
        os.killpg(group, signal.SIGKILL)
