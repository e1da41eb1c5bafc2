"""Processes that act as machines at one bulk pass, with an engine that answers at once."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from recloom.launcher import bulk_supervisor
from recloom.launcher.bulk_claims import Heartbeat, Witness, machine_of, new_owner
from recloom.launcher.bulk_plan import ALIVE, Plan, open_pass, work_folder
from recloom.launcher.bulk_store import BulkStore
from recloom.launcher.bulk_work import WorkList
from recloom.launcher.processes import die_with_parent
from recloom.trainer.requests import Answer, BulkSettings, Request

FORK = multiprocessing.get_context("fork")
BEAT, LEASE = 0.05, 0.6
POISON = 666
MANY_DEATHS = 10_000


def answer_of(request: Request) -> Answer:
    text = ",".join(map(str, request.prompt_ids))
    return Answer(request.key, text, request.prompt_ids, -1.5, (), "stop", None, request.meta)


def walk_pass(name: str, out: Path, model: Path, asked: list[Request], settings: BulkSettings) -> None:
    """What `run_pass` does on machine `name`, without processes of its own and with a short lease."""
    draw, owner = random.Random(os.getpid()), new_owner(name)
    store = BulkStore.describe(out, model, settings, asked)
    alive = work_folder(out) / ALIVE
    witness = Witness(alive, LEASE)
    with Heartbeat(alive, owner, BEAT):
        while plan := open_pass(store, asked, owner, witness):
            chunks = WorkList(plan, out, owner, witness, MANY_DEATHS)
            requests = store.requests()
            for number in chunks.claims(lambda: None):
                time.sleep(draw.random() * 0.05)
                answers = [answer_of(requests[place]) for place in plan.chunks[number][1]]
                if chunks.commit(number, answers):
                    note(out, f"{owner} {plan.chunks[number][0]}")


def note(out: Path, line: str) -> None:
    with open(out.with_name("commits"), "a") as file:
        file.write(line + "\n")


class Machine:
    """One of them: started, killed, or put to sleep for longer than its lease."""

    def __init__(self, name: str, *inputs: object) -> None:
        self.process = FORK.Process(target=walk_pass, args=(name, *inputs))
        self.process.start()

    def send(self, number: signal.Signals) -> None:
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.join()


def fake_worker(out: Path, plan_folder: Path, owner: str, pipe: Connection, parent: int) -> None:
    """A worker as `launcher/bulk.py` has it, that dies at the prompt POISON."""
    die_with_parent(parent)
    plan, store = Plan.read(plan_folder), BulkStore.reopen(out)
    requests = store.requests()
    chunks = WorkList(plan, out, owner, Witness(plan.alive, 60), store.settings.max_restarts)
    with Heartbeat(plan.alive, owner):
        wait_for_machines(plan.alive, int(os.environ.get("MACHINES", "1")))
        pipe.send({"answered": 0, "chunk": ""})
        for number in chunks.claims(lambda: pipe.send({"answered": 0, "chunk": ""})):
            name, places = plan.chunks[number]
            pipe.send({"answered": 0, "chunk": name})
            asked = [requests[place] for place in places]
            if any(POISON in request.prompt_ids for request in asked):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.02)
            chunks.commit(number, [answer_of(request) for request in asked])
            note(out, f"{owner} {name}")
            pipe.send({"answered": 0, "chunk": "", "committed": True})


def wait_for_machines(alive: Path, number: int) -> None:
    """Until engines of so many machines are here, so that none does all the work before another has begun."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        engines = [machine_of(path.name) for path in alive.iterdir() if path.stat().st_size]
        if sum(count > 1 for count in Counter(engines).values()) >= number:  # its supervisor and an engine
            return
        time.sleep(0.05)


def run_elsewhere(name: str, *inputs: Any) -> None:
    """`run_pass` as on a machine of this name; ends the process with 0 when it returned all answers."""
    bulk_supervisor.worker_command = fake_command
    socket.gethostname = lambda: name
    answers = bulk_supervisor.run_pass(*inputs)
    sys.exit(0 if answers == [answer_of(request) for request in inputs[2]] else 1)


def fake_command(out: Path, plan: Plan) -> list[str]:
    return [sys.executable, "-P", __file__, str(out), str(plan.folder)]


if __name__ == "__main__":
    out_, plan_, owner_, pipe_, parent_ = sys.argv[1:]
    fake_worker(Path(out_), Path(plan_), owner_, Connection(int(pipe_), readable=False), int(parent_))
