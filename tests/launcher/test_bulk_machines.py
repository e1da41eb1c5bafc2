"""Many machines and engines at one pass: killed, asleep, at odds. No test here starts vLLM."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import bulk_machines
from bulk_machines import FORK, LEASE, POISON, Machine, answer_of, run_elsewhere, walk_pass

from recloom.data_shards.errors import UserError
from recloom.launcher import bulk_supervisor
from recloom.launcher.bulk_claims import Heartbeat, Witness, new_owner
from recloom.launcher.bulk_environment import engine_environments
from recloom.launcher.bulk_join import join_run
from recloom.launcher.bulk_plan import ALIVE, current, open_pass, work_folder
from recloom.launcher.bulk_store import BulkStore, plan_chunks
from recloom.launcher.bulk_supervisor import run_pass
from recloom.launcher.bulk_work import WorkList
from recloom.trainer.requests import BulkSettings, Request, read_answers, read_chunk

ASKED = [Request((n % 7, n), 4) for n in range(120)]
SMALL = BulkSettings(chunk_size=3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Files that look like a model to everything but vLLM."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"1")
    return folder


def assert_whole(out: Path, asked: list[Request]) -> None:
    """All answers, in order; each request answered in one chunk only; nothing of the work is left."""
    assert read_answers(out) == [answer_of(request) for request in asked]
    keys = Counter(answer.key for path in out.glob("chunk-*.jsonl") for answer in read_chunk(path))
    assert set(keys.values()) == {1}
    assert not work_folder(out).exists()
    assert {path.name.partition("-")[0] for path in out.iterdir()} == {
        "chunk",
        "manifest.json",
        "pass.json",
        "requests.jsonl",
    }
    committed = Counter(line.split()[1] for line in out.with_name("commits").read_text().splitlines())
    assert set(committed.values()) == {1}


class FilesNeverChange(threading.Thread):
    """Watches the folder: a chunk's file that was seen once stays the same file."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.out, self.stop, self.wrong = out, threading.Event(), list[str]()
        self.seen: dict[str, tuple[int, int, int]] = {}

    def run(self) -> None:
        while not self.stop.wait(0.01):
            for path in self.out.glob("chunk-*.jsonl"):
                now = path.stat()
                facts = (now.st_ino, now.st_mtime_ns, now.st_size)
                if self.seen.setdefault(path.name, facts) != facts:
                    self.wrong.append(path.name)


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_machines_may_die_and_sleep_at_any_moment(tmp_path: Path, model: Path, seed: int) -> None:
    draw, folder = random.Random(seed), tmp_path / f"seed_{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    out = folder / "out"
    folder.mkdir()
    watch = FilesNeverChange(out)
    watch.start()
    machines = {f"m{n}": Machine(f"m{n}", out, model, ASKED, SMALL) for n in range(3)}
    for turn in range(8):
        time.sleep(draw.random() * 0.3)
        name = draw.choice(sorted(machines))
        if draw.random() < 0.3:
            machines[name].send(signal.SIGSTOP)
            time.sleep(1.5 * LEASE)  # the others take it for dead; then it goes on where it was
            machines[name].send(signal.SIGCONT)
            continue
        machines.pop(name).kill()
        again = name if draw.random() < 0.5 else f"n{turn}"
        machines[again] = Machine(again, out, model, ASKED, SMALL)
    for machine in machines.values():
        machine.process.join(120)
        assert machine.process.exitcode == 0
    watch.stop.set()
    watch.join()
    assert watch.wrong == []
    assert_whole(out, ASKED)


def test_one_machine_keeps_the_order_and_the_files(tmp_path: Path, model: Path) -> None:
    """Chunks, names and bytes are those of `BulkStore.todo`, whoever works."""
    out = tmp_path / "one" / "out"
    out.parent.mkdir()
    store = BulkStore.describe(tmp_path / "plan", model, SMALL, ASKED)
    store.settle(ASKED)
    planned = list(store.todo())
    walk_pass("m", out, model, ASKED, SMALL)
    assert_whole(out, ASKED)
    done = [line.split()[1] for line in out.with_name("commits").read_text().splitlines()]
    assert done == [path.name for path, _ in planned]
    for path, chunk in planned:
        assert read_chunk(out / path.name) == [answer_of(request) for request in chunk]


def begin(name: str, out: Path, model: Path, asked: list[Request], lease: float = 0.5) -> WorkList | None:
    """Machine `name` enters the pass."""
    owner, alive = new_owner(name), work_folder(out) / ALIVE
    witness = Witness(alive, lease)
    plan = open_pass(BulkStore.describe(out, model, SMALL, asked), asked, owner, witness)
    return plan and WorkList(plan, out, owner, witness, 1)


def test_a_slow_engine_neither_overwrites_nor_commits_into_another_pass(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    slow, fast = begin("a", out, model, ASKED[:3]), begin("b", out, model, ASKED[:3])
    assert slow is not None
    assert fast is not None
    assert slow.plan == fast.plan
    (missing,) = slow.plan.missing(out)
    assert slow.claim_next([missing], -1) == 0
    assert fast.claim_next([missing], -1) is None
    time.sleep(0.6)
    assert fast.claim_next([missing], -1) == 0  # the lease is over
    answers = [answer_of(request) for request in ASKED[:3]]
    assert fast.commit(0, answers)
    assert not slow.commit(0, answers[:1])
    assert len(read_chunk(out / "chunk-00000.jsonl")) == 3
    (work_folder(out) / ALIVE / slow.owner).unlink()
    other = begin("b", out, model, ASKED[3:6])  # the same folder and file names, other requests
    assert other is not None
    assert not slow.commit(0, answers)
    assert not list(out.glob("chunk-*"))


def test_another_pass_is_refused_while_somebody_lives(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    first = begin("a", out, model, ASKED)
    assert first is not None
    with Heartbeat(work_folder(out) / ALIVE, first.owner, 0.1), pytest.raises(UserError, match="'a' is at a"):
        begin("b", out, model, ASKED[1:], lease=30)
    assert current(work_folder(out)) == first.plan
    second = begin("b", out, model, ASKED[1:])  # nobody lives there any more
    assert second is not None
    assert first.plan.missing(out) == []


def test_damaged_chunks_are_answered_again(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "one" / "out"
    out.parent.mkdir()
    walk_pass("m", out, model, ASKED, SMALL)
    whole = (out / "chunk-00007.jsonl").read_bytes()
    (out / "chunk-00007.jsonl").write_bytes(whole[:-9])
    (out / "manifest.json").unlink()
    out.with_name("commits").unlink()
    walk_pass("m", out, model, ASKED, SMALL)
    assert_whole(out, ASKED)
    assert (out / "chunk-00007.jsonl").read_bytes() == whole
    assert len(out.with_name("commits").read_text().splitlines()) == 1


def with_fake_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_supervisor, "worker_command", bulk_machines.fake_command)


def test_one_command_runs_several_engines(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fake_workers(monkeypatch)
    out = tmp_path / "one" / "out"
    answers = run_pass(BulkSettings(chunk_size=3, engines=3), model, ASKED, out)
    assert answers == [answer_of(request) for request in ASKED]
    assert_whole(out, ASKED)
    commits = out.with_name("commits").read_text().splitlines()
    assert len({line.split()[0] for line in commits}) >= 2


def test_the_same_command_on_two_machines_is_one_pass(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACHINES", "2")
    out = tmp_path / "one" / "out"
    inputs = [(BulkSettings(chunk_size=3, engines=n), model, ASKED, out) for n in (1, 2)]
    machines = [
        FORK.Process(target=run_elsewhere, args=(name, *given))
        for name, given in zip("ab", inputs, strict=True)
    ]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join()
        assert machine.exitcode == 0
    assert_whole(out, ASKED)
    by = {line.partition("-")[0] for line in out.with_name("commits").read_text().splitlines()}
    assert by == {"a", "b"}
    assert {path.name for path in out.parent.glob("out.*")} == {"out.a.log", "out.b.log"}


def test_join_needs_the_run_folder_only(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_fake_workers(monkeypatch)
    out = tmp_path / "run" / "seed_1" / "bulk" / "rank.one"
    assert begin("elsewhere", out, model, [*ASKED, ASKED[0]]) is not None
    assert join_run(tmp_path / "run", 2, 0.3) == 1
    assert_whole(out, [*ASKED, ASKED[0]])
    assert join_run(tmp_path / "run", None, 0.1) == 0
    with pytest.raises(UserError, match="no such folder"):
        join_run(tmp_path / "none", None, 1)


def test_a_chunk_that_ends_its_engines_ends_the_pass(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fake_workers(monkeypatch)
    out, asked = tmp_path / "one" / "out", [*ASKED, Request((1, POISON), 4)]
    with pytest.raises(
        UserError, match=r"SIGKILL, the end of worker 2 at chunk-000\d\d.jsonl: see"
    ) as caught:
        run_pass(BulkSettings(chunk_size=3, engines=2, max_restarts=1), model, asked, out)
    assert f"of {len(asked)} requests: the worker of engine" in str(caught.value)
    kept = len(list(out.glob("chunk-*.jsonl")))
    walk_pass("mended", out, model, asked, SMALL)  # what was committed stays
    assert len(list(out.glob("chunk-*.jsonl"))) == len(list(plan_chunks(asked, SMALL.chunk_size)))
    assert kept > 0


def test_engines_share_cores_or_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from recloom.launcher import bulk_environment

    monkeypatch.setattr(bulk_environment, "num_cores", lambda: 9)
    threads = [env["OMP_NUM_THREADS"] for env in engine_environments(BulkSettings(engines=4))]
    assert threads == ["2"] * 4
    assert engine_environments(BulkSettings(engines=2, threads=7))[1]["OMP_NUM_THREADS"] == "7"
    monkeypatch.setattr(bulk_environment, "cpu_build", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,GPU-7")
    shown = [env["CUDA_VISIBLE_DEVICES"] for env in engine_environments(BulkSettings(engines=3))]
    assert shown == ["2", "5", "GPU-7"]
    assert engine_environments(BulkSettings())[0]["CUDA_VISIBLE_DEVICES"] == "2,5,GPU-7"
    with pytest.raises(UserError, match="engines = 4: .* shows 3: give at most 3"):
        engine_environments(BulkSettings(engines=4))
