"""`recloom join RUN`: this machine's engines at the bulk passes of a run that another machine does.

Everything comes from the run's folder: the requests, the model's folder and the settings.
"""

from __future__ import annotations

import time
from pathlib import Path

from recloom.data_shards.errors import UserError
from recloom.launcher.bulk_plan import PLAN
from recloom.launcher.bulk_store import PASS, BulkStore
from recloom.launcher.bulk_supervisor import run_pass
from recloom.trainer.requests import REQUESTS, read_requests

PASSES = ("bulk/*.work", "seed_*/bulk/*.work")
LOOK_SECONDS = 2.0


def join_run(run: Path, engines: int | None, idle_seconds: float) -> int:
    """Join pass after pass of the run until none came for `idle_seconds`; how many were joined."""
    if not run.is_dir():
        raise UserError(f"run = '{run}': no such folder: name a run's, which `recloom run` has made.")
    if engines is not None and engines < 1:
        raise UserError(f"--engines {engines}: less than one: give 1 or more.")
    joined, since = 0, time.monotonic()
    while time.monotonic() - since < idle_seconds:
        for out in open_passes(run):
            print(f"{out}: joining", flush=True)
            join_pass(out, engines)
            joined, since = joined + 1, time.monotonic()
        time.sleep(min(LOOK_SECONDS, idle_seconds))
    return joined


def open_passes(run: Path) -> list[Path]:
    """The folders of the passes that have work left."""
    works = {plan.parents[1] for pattern in PASSES for plan in run.glob(f"{pattern}/plan-*/{PLAN}")}
    outs = [work.with_suffix("") for work in sorted(works)]
    return [out for out in outs if (out / PASS).is_file()]


def join_pass(out: Path, engines: int | None) -> None:
    store = BulkStore.reopen(out)
    settings = store.settings.model_copy(update={"engines": engines or store.settings.engines})
    run_pass(settings, store.model, read_requests(out / REQUESTS), out)
