"""The work list of a bulk pass, which all its engines share, and how machines agree on it.

Beside the pass's folder OUT lies `OUT.work/` while it runs:

    lock/           a chain: one machine at a time begins or ends the pass
    alive/OWNER     signs of life
    plan-ID/        plan.json (which requests go into which chunk file), claims/, unfinished chunks

A plan appears by one rename and never changes. It goes by one rename as well, and with it the unfinished
chunks in it, so that an engine of an old plan can't commit into a new one. Every machine may leave or come at
any time; the last chunk's arrival ends the pass for all.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from recloom.data_shards.errors import UserError
from recloom.launcher.bulk_claims import (
    Chains,
    Witness,
    folder_lock,
    is_gone,
    machine_of,
    write_whole,
)
from recloom.launcher.bulk_store import BulkStore
from recloom.trainer.requests import Request

ALIVE = "alive"
CLAIMS = "claims"
PLAN = "plan.json"


def work_folder(out: Path) -> Path:
    return out.with_name(out.name + ".work")


@dataclass(frozen=True)
class Plan:
    """chunks: the file of each and the places of its requests in the pass's request file."""

    folder: Path
    chunks: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def read(cls, folder: Path) -> Plan:
        rows = json.loads((folder / PLAN).read_text())
        return cls(folder, tuple((name, tuple(places)) for name, places in rows))

    @property
    def alive(self) -> Path:
        return self.folder.parent / ALIVE

    def missing(self, out: Path) -> list[int]:
        """The chunks without a file; none when the plan is over."""
        there = {path.name for path in out.glob("chunk-*.jsonl")}
        left = [number for number, (name, _) in enumerate(self.chunks) if name not in there]
        return left if self.folder.is_dir() else []

    def worn_out(self, numbers: Sequence[int], deaths: int) -> str | None:
        """The file of the first of these chunks at which more than `deaths` engines died."""
        names = [self.chunks[number][0] for number in numbers]
        try:
            states = Chains(self.folder / CLAIMS, "").states(names)
        except OSError as error:
            if not is_gone(error):
                raise
            return None
        return next((name for name in names if states[name].deaths > deaths), None)


def open_pass(store: BulkStore, requests: Sequence[Request], owner: str, witness: Witness) -> Plan | None:
    """Join the pass that other machines are at, or begin it, or end it when all is answered (then None).

    Raises UserError when other machines are at a pass of other inputs in this folder.
    """
    work = work_folder(store.out)
    with folder_lock(work, owner, witness):
        (work / ALIVE).mkdir(exist_ok=True)
        (work / ALIVE / owner).touch()  # so that the next one sees us, before the first heartbeat
        plan, others = current(work), owners_elsewhere(work, owner)
        if plan and others and store.is_saved() and is_open(plan, store):
            return plan
        if plan and others and not store.is_saved() and witness.any_alive(others):
            raise UserError(
                f"out = '{store.out}': '{machine_of(others[0])}' is at a pass with another model, other "
                "requests or another number format there: wait for it, or name another folder."
            )
        if plan:
            remove(plan.folder)
        store.settle(requests)
        if not store.finished():
            if chunks := list(store.todo()):
                return make_plan(work, store, chunks)
            store.finish()
        remove(work)
        return None


def current(work: Path) -> Plan | None:
    folders = sorted(work.glob(f"plan-*/{PLAN}"))
    return Plan.read(folders[0].parent) if folders else None


def owners_elsewhere(work: Path, owner: str) -> list[str]:
    """Who seems to be at work on other machines. Files that former processes of this one left are removed."""
    elsewhere = []
    for path in sorted((work / ALIVE).glob("*@*")):
        if machine_of(path.name) != machine_of(owner):
            elsewhere.append(path.name)
        elif path.name != owner:
            path.unlink(missing_ok=True)
    return elsewhere


def is_open(plan: Plan, store: BulkStore) -> bool:
    """Whether there is something to do in it. One that failed is made anew: its cause may be mended."""
    missing = plan.missing(store.out)
    return bool(missing) and plan.worn_out(missing, store.settings.max_restarts) is None


def make_plan(work: Path, store: BulkStore, chunks: Sequence[tuple[Path, list[Request]]]) -> Plan:
    places = {request.key: place for place, request in enumerate(store.requests())}
    rows = [(path.name, tuple(places[request.key] for request in chunk)) for path, chunk in chunks]
    name = f"plan-{secrets.token_hex(6)}"
    made = work / f".{name}.tmp"
    (made / CLAIMS).mkdir(parents=True)
    write_whole(made / PLAN, json.dumps(rows))
    return Plan(made.rename(work / name), tuple(rows))


def remove(folder: Path) -> None:
    """Away at once for whoever uses it, then bit by bit."""
    old = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.tmp")
    with suppress(FileNotFoundError):
        shutil.rmtree(folder.rename(old), ignore_errors=True)
