"""The engines of one machine: a worker process each, restarted when it dies or stalls, and one progress bar.

A worker reports over a pipe; what counts is the chunks that stand in the folder, not its exit code.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import IO, Any

from tqdm import tqdm

from recloom.data_shards.errors import UserError
from recloom.launcher.bulk_claims import machine_of, new_owner
from recloom.launcher.bulk_work import WorkList

STARTUP_SECONDS = 3600.0  # a large model loads without a sign of life
TICK_SECONDS = 1.0
REPORT_SECONDS = 1.0
SCAN_SECONDS = 5.0  # between looks at what other machines have done
log = logging.getLogger(__name__)


def supervise(work: WorkList, engines: Sequence[EngineProcess], wanted: int, max_restarts: int) -> None:
    """Run a worker for each engine until the plan is over; wanted: the requests of the whole pass.

    Gives up with UserError when more than `max_restarts` workers died at one chunk, when one engine's workers
    failed as often in a row without committing anything, or at once when one fails before it can answer
    anything (a setting or the model is at fault).
    """
    here = machine_of(work.owner)
    work.release(lambda owner: machine_of(owner) == here, died=False)  # of a former start on this machine
    progress = Progress(work, wanted)
    try:
        while missing := progress.look():
            if worn := work.plan.worn_out(missing, max_restarts):
                raise UserError(
                    f"{progress}: {worn} ended {max_restarts + 1} workers: see the logs of all machines."
                )
            for engine in engines:
                if not engine.owner:
                    engine.start(new_owner(here))
            for engine in follow(engines, progress):
                replace(engine, work, progress, max_restarts)
    finally:
        progress.bar.close()
        for engine in engines:
            if engine.owner:
                bury(engine, work, died=False)


def follow(engines: Sequence[EngineProcess], progress: Progress) -> list[EngineProcess]:
    """Listen until a worker has ended, or it is time to look at the folder; returns those that ended."""
    deadline = time.monotonic() + SCAN_SECONDS
    while time.monotonic() < deadline:
        ready = wait([engine.pipe for engine in engines], TICK_SECONDS)
        for engine in engines:
            engine.listen(engine.pipe in ready)
        progress.show(engines)
        if ended := [engine for engine in engines if engine.reason]:
            return ended
    return []


def replace(engine: EngineProcess, work: WorkList, progress: Progress, max_restarts: int) -> None:
    """Make room for the engine's next worker; raises UserError when there should be none."""
    bury(engine, work, died=True)
    missing = progress.look()
    if not missing:
        return
    engine.failures += 1
    state = f"{progress}: {engine} {engine.reason}"
    if worn := work.plan.worn_out(missing, max_restarts):
        state += f", the end of worker {max_restarts + 1} at {worn}"
    elif not engine.is_hopeless and engine.failures <= max_restarts:
        log.warning("%s: it is started again", state)
        return
    raise UserError(f"{state}: see '{engine.log_file.name}', mend the cause, run it again.")


def bury(engine: EngineProcess, work: WorkList, died: bool) -> None:
    """End the worker and free what it held."""
    owner, engine.owner = engine.owner, ""
    engine.end()
    work.release(lambda other: other == owner, died)
    with suppress(OSError):
        (work.plan.alive / owner).unlink(missing_ok=True)


class EngineProcess:
    """The worker of one engine: in a session of its own, with a pipe to hear it.

    name: what messages call it; command: what starts it, given its owner name, a pipe and our process id.
    """

    worker: subprocess.Popen[bytes]
    pipe: Connection

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        log_file: IO[bytes],
        stall_seconds: float,
    ) -> None:
        self.name = name
        self.command = command
        self.env = env
        self.log_file = log_file
        self.stall_seconds = stall_seconds
        self.failures = 0
        self.owner = ""

    def start(self, owner: str) -> None:
        self.chunk, self.answered, self.ready = "", 0, False
        self.error, self.reason = "", ""
        self.pipe, sender = Pipe(duplex=False)
        with sender:
            self.worker = subprocess.Popen(
                [*self.command, owner, str(sender.fileno()), str(os.getpid())],
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=self.log_file,
                stderr=self.log_file,
                pass_fds=(sender.fileno(),),
                start_new_session=True,
            )
        self.owner, self.heard = owner, time.monotonic()

    def listen(self, has_news: bool) -> None:
        """Take the next message; `reason` says why the worker is at its end."""
        limit = self.stall_seconds if self.ready else STARTUP_SECONDS
        if has_news:
            try:
                self.take(self.pipe.recv())
            except (EOFError, OSError):
                self.reason = self.error or exit_reason(self.worker.wait())
        elif time.monotonic() - self.heard > limit:
            self.reason = f"showed no progress for {limit:g} s"

    def take(self, message: dict[str, Any]) -> None:
        self.heard = time.monotonic()
        if "error" in message:
            self.error = message["error"]
            return
        self.ready = True
        self.answered, self.chunk = message["answered"], message.get("chunk", "")
        if message.get("committed"):
            self.failures = 0

    @property
    def is_hopeless(self) -> bool:
        """Whether it failed before it could begin: another worker would do the same."""
        return bool(self.error) and not self.ready

    def end(self) -> None:
        """End the worker and whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.worker.pid, signal.SIGKILL)
        self.worker.wait()
        self.pipe.close()

    def __str__(self) -> str:
        return f"{self.name} at {self.chunk}" if self.chunk else self.name


class Reporter:
    """A worker's side: tells its chunk, and how much of it is answered at most once a second."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.chunk = ""
        self.last = 0.0

    def begin(self, chunk: str) -> None:
        self.chunk = chunk
        self.send(0)

    def answered(self, in_chunk: int) -> None:
        if time.monotonic() - self.last >= REPORT_SECONDS:
            self.send(in_chunk)

    def idle(self) -> None:
        self.answered(0)

    def commit(self) -> None:
        self.chunk = ""
        self.send(0, committed=True)

    def send(self, answered: int, **more: bool) -> None:
        self.last = time.monotonic()
        self.pipe.send({"answered": answered, "chunk": self.chunk, **more})


def exit_reason(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


class Progress:
    """What all machines have committed, and what this one's engines have answered beyond that."""

    def __init__(self, work: WorkList, wanted: int) -> None:
        self.work = work
        self.wanted = wanted
        self.done = self.count()[1]
        self.bar = tqdm(total=wanted, initial=self.done, unit=" requests", desc=work.out.name, disable=None)
        self.loading = True

    def count(self) -> tuple[list[int], int]:
        missing = self.work.plan.missing(self.work.out)
        return missing, self.wanted - sum(len(self.work.plan.chunks[number][1]) for number in missing)

    def look(self) -> list[int]:
        """The chunks that are missing still."""
        missing, self.done = self.count()
        return missing

    def show(self, engines: Sequence[EngineProcess]) -> None:
        if self.loading and any(engine.ready for engine in engines):
            self.loading = False
            self.bar.unpause()  # the time of loading would spoil the ETA
        if any(engine.reason == "" and engine.answered == 0 and not engine.chunk for engine in engines):
            self.look()  # one has just committed
        self.bar.n = min(self.wanted, self.done + sum(engine.answered for engine in engines))
        self.bar.refresh()

    def __str__(self) -> str:
        return f"bulk pass '{self.work.out}' at {self.done} of {self.wanted} requests"
