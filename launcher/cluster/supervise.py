"""Runs a training's processes as one group that ends together, again when it failed, and lets it leave."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from recloom.launcher.cluster.job import Job, training_finished
from recloom.launcher.cluster.watch import REQUEUE
from recloom.launcher.processes import die_with_parent

POLL_SECONDS = 0.2
AGAIN_SECONDS = 5.0
MARKER_SECONDS = 10.0  # for a marker that another node wrote to show on a network file system
BAD_INPUT = 2
PassOn = Callable[[int], None]  # tells a process group, by its number, to leave


class Supervisor:
    """One process group at a time; SIGTERM or SIGUSR1 to this process asks it to leave.

    Args:
        leave_seconds: what the group has for its checkpoint before it is killed.
    """

    def __init__(self, leave_seconds: float) -> None:
        self.leave_seconds = leave_seconds
        self.asked = False

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.ask)

    def ask(self, *_: Any) -> None:
        self.asked = True

    def run(self, command: list[str], environment: dict[str, str], pass_on: PassOn) -> int:
        """Run to the end; the exit code, REQUEUE when it had to be killed after being asked to leave."""
        tie = partial(begin, os.getpid())
        group = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=tie)
        try:
            return self.wait(group, pass_on)
        finally:
            with contextlib.suppress(ProcessLookupError):  # no orphan works on
                os.killpg(group.pid, signal.SIGKILL)
            group.wait()

    def wait(self, group: subprocess.Popen[bytes], pass_on: PassOn) -> int:
        asked_at: float | None = None
        told = 0
        while group.poll() is None:
            if self.asked and asked_at is None:
                print("launch: asked to leave, passed on to the ranks", flush=True)
                asked_at = time.monotonic()
            if asked_at is not None:
                waited = time.monotonic() - asked_at
                if waited > self.leave_seconds:
                    print(f"launch: nobody left within {self.leave_seconds:g} s: ended", flush=True)
                    return REQUEUE
                if waited >= told * AGAIN_SECONDS:  # a rank that is still starting does not listen yet
                    told += 1
                    pass_on(group.pid)
            time.sleep(POLL_SECONDS)
        return group.returncode


def begin(parent: int) -> None:
    """In the new group's first process: SIGUSR1 is for the ranks, DeepSpeed's launchers would die of it."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    die_with_parent(parent)


def ask_group(group: int) -> None:
    os.killpg(group, signal.SIGUSR1)


def end_group(group: int) -> None:
    """For what has no checkpoint of its own to write: stages continue where they were."""
    os.killpg(group, signal.SIGTERM)


def train(
    job: Job, supervisor: Supervisor, command: list[str], environment: dict[str, str], pass_on: PassOn
) -> int:
    """Run the training command until the training has left its marker, at most 1 + job.restarts times.

    Returns 0, REQUEUE when asked to leave, 2 for bad input, else 1.
    """
    starts = job.restarts + 1
    for number in range(1, starts + 1):
        code = supervisor.run(command, environment, pass_on)
        if has_finished(job, code):
            return 0
        if supervisor.asked or code == REQUEUE:
            print("launch: left before the training was done: start again to continue", flush=True)
            return REQUEUE
        if code == BAD_INPUT:
            return BAD_INPUT
        then = "starting again from the last checkpoint" if number < starts else "no restart is left"
        print(
            f"launch: start {number} of {starts} ended with exit code {code} before the training was done: "
            f"{then}",
            flush=True,
        )
        if supervisor.asked:
            return REQUEUE
    return 1


def has_finished(job: Job, code: int) -> bool:
    """Believe the markers; a good exit code is a reason to look for a while."""
    deadline = time.monotonic() + (MARKER_SECONDS if code == 0 else 0)
    while not training_finished(job):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
