"""When and whom a kill of the fault drill hits: drawn by a seed, then waited for.

A kill aims at one of four moments of a start (AIMS), with stated odds; it falls a drawn part of a span later,
so that it is not always the same instruction that dies.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import psutil

from recloom.data_shards.artifacts import MANIFEST
from recloom.data_shards.errors import UserError
from recloom.tools.fault_twin import RANKS, Twin

RANKS_POLL = 0.25  # seconds; looking for the ranks goes through all processes
STEP_POLL = 0.05
PATIENCE_SECONDS = 1800.0  # a start that does nothing for so long hangs


@dataclass(frozen=True)
class Aim:
    """odds: of 100. span: seconds after the moment in which the kill falls. skip: so many moments of this
    kind at most are let pass. poll: seconds between two looks."""

    odds: int
    span: float
    skip: int
    poll: float
    meaning: str


AIMS = {
    "start": Aim(
        15, 10.0, 0, 0.1, "from the first sign of the ranks: imports, meeting, loading a checkpoint"
    ),
    "step": Aim(35, 3.0, 0, STEP_POLL, "behind the first step that this start took"),
    "checkpoint": Aim(
        35, 0.1, 2, 0.002, "while a checkpoint is being written: its folder is there, its manifest is not"
    ),
    "shard": Aim(15, 0.0, 2, 0.02, "while the rank has a shard open that it had not before"),
}


@dataclass(frozen=True)
class Shot:
    """One kill as drawn: of which rank, at which moment, how long behind it."""

    number: int
    aim: str
    rank: int
    skip: int
    delay: float


def draw(seed: int, number: int, missed: int = 0) -> Shot:
    """The same for the same seed and numbers, so that an interrupted drill goes on as it would have.

    missed: how often kill `number` was aimed and its training ended first. Each time it is another shot: on a
    quick machine some moments never come.
    """
    rng = random.Random(f"{seed}:{number}:{missed}" if missed else f"{seed}:{number}")
    aim = rng.choices(list(AIMS), [kind.odds for kind in AIMS.values()])[0]
    kind = AIMS[aim]
    return Shot(number, aim, rng.randrange(RANKS), rng.randint(0, kind.skip), kind.span * rng.random())


def ranks_below(process: Popen[bytes]) -> dict[int, psutil.Process]:
    """The training processes of a launch by their local rank."""
    found = {}
    try:
        for child in psutil.Process(process.pid).children(recursive=True):
            marks = [word for word in child.cmdline() if word.startswith("--local_rank=")]
            if marks:
                found[int(marks[0].partition("=")[2])] = child
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        pass
    return found


def wait_for(process: Popen[bytes], is_there: Callable[[], bool], poll: float) -> bool:
    """Poll until it is there; False when the launch ends first.

    Raises UserError when neither happens.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_there():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise UserError(
                f"a start did nothing for {PATIENCE_SECONDS:.0f} s: the moment of a kill never came."
            )
        time.sleep(poll)
    return True


def unfinished(checkpoints: Path) -> dict[str, float]:
    """Checkpoints that are being written, or were left torn, and when they were last touched."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for path in checkpoints.glob("step_*"):
            if not (path / MANIFEST).is_file():
                found[path.name] = path.stat().st_mtime
    return found


class Moments:
    """What the twin's files and the ranks show of a start, to wait for the moment of a shot."""

    def __init__(self, twin: Twin, victim: psutil.Process, started: float) -> None:
        self.twin, self.victim, self.started = twin, victim, started
        self.metrics = twin.tuned / "metrics.jsonl"
        self.seen: set[str] = set()
        self.open: set[str] = set()
        self.size: int | None = None

    def start(self) -> bool:
        return True

    def step(self) -> bool:
        """The log grows: rank 0 rewrites it when it starts, so the first size that is seen may shrink."""
        size = self.metrics.stat().st_size if self.metrics.is_file() else 0
        if self.size is None or size < self.size:
            self.size = size
        return size > self.size

    def checkpoint(self) -> bool:
        """A further checkpoint is under way, not one that an earlier start left torn."""
        now = unfinished(self.twin.checkpoints)
        fresh = {name for name, touched in now.items() if touched > self.started} - self.seen
        self.seen |= fresh
        return bool(fresh)

    def shard(self) -> bool:
        """The victim has opened a further shard."""
        try:
            now = {file.path for file in self.victim.open_files() if file.path.endswith(".tar")}
        except psutil.Error:
            return False
        fresh = now - self.open
        self.open |= now
        return bool(fresh)


def wait_for_shot(process: Popen[bytes], twin: Twin, shot: Shot) -> psutil.Process | None:
    """Wait for the moment of a shot; the victim, or None when the launch ended before."""
    started = time.time()
    if not wait_for(process, lambda: len(ranks_below(process)) == RANKS, RANKS_POLL):
        return None
    victim = ranks_below(process).get(shot.rank)
    if victim is None:
        return None
    moments = Moments(twin, victim, started)
    # A start writes no checkpoint before its first step; looking closely until then would slow it down.
    if shot.aim == "checkpoint" and not wait_for(process, moments.step, STEP_POLL):
        return None
    moment: Callable[[], bool] = getattr(moments, shot.aim)
    for _ in range(shot.skip + 1):
        if not wait_for(process, moment, AIMS[shot.aim].poll):
            return None
    time.sleep(shot.delay)
    return victim if process.poll() is None and victim.is_running() else None
