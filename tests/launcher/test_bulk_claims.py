"""Claims, signs of life and the order of work, without engines."""

from __future__ import annotations

import errno
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloom.data_shards.errors import UserError
from recloom.launcher.bulk_claims import (
    BEAT_SECONDS,
    Chains,
    Heartbeat,
    State,
    Witness,
    folder_lock,
    link_first,
    machine,
    machine_of,
    new_owner,
)
from recloom.launcher.bulk_work import BUSY, DONE, FREE, next_chunk

FORK = multiprocessing.get_context("fork")
OWNERS = ("a@1", "b@2", "c@3")


@given(
    st.lists(
        st.tuples(st.sampled_from(OWNERS), st.sampled_from(["look", "claim", "free", "died"])), max_size=30
    )
)
def test_each_state_is_changed_by_one_owner_only(steps: list[tuple[str, str]]) -> None:
    """Owners act on what they saw last, however old that is; the model is a plain list of records."""
    with tempfile.TemporaryDirectory() as folder:
        chains = {owner: Chains(Path(folder), owner) for owner in OWNERS}
        seen = {owner: State() for owner in OWNERS}
        holder, records, deaths = None, 0, 0
        for owner, step in steps:
            if step == "look":
                seen[owner] = chains[owner].states(["x"])["x"]
                assert seen[owner] == State(records, holder, deaths)
                continue
            if step == "claim":
                won = chains[owner].claim("x", seen[owner])
            else:
                won = chains[owner].free("x", seen[owner], died=step == "died")
            assert won == (seen[owner].records == records)
            if won:
                deaths += (holder is not None) if step == "claim" else step == "died"
                holder, records = (owner if step == "claim" else None), records + 1
        assert Chains(Path(folder), "z@9").states(["x"])["x"] == State(records, holder, deaths)
        assert not list(Path(folder).glob("*.tmp"))


def test_a_lost_claim_is_seen_though_the_listing_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS may show a folder as it was half a minute ago."""
    one, two = Chains(tmp_path, "a@1"), Chains(tmp_path, "b@2")
    assert one.claim("x", State())
    monkeypatch.setattr(os, "listdir", lambda folder: [])
    assert not two.claim("x", two.states(["x"])["x"])
    assert two.states(["x"])["x"] == State(1, "a@1")


def test_first_link_wins_and_a_repeated_request_is_its_own(tmp_path: Path) -> None:
    one, two, name = tmp_path / "one", tmp_path / "two", tmp_path / "name"
    one.write_text("1")
    two.write_text("2")
    assert link_first(one, name)
    assert link_first(one, name)  # NFS asks again when the reply was lost
    assert not link_first(two, name)
    assert name.read_text() == "1"


def test_a_file_system_without_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(made: Path, name: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match="hard links"):
        link_first(tmp_path / "made", tmp_path / "name")


@given(
    st.lists(
        st.tuples(st.sampled_from([0.5, 2.0, 30.0]), st.integers(0, 4).map(lambda n: n == 0)), max_size=30
    )
)
def test_death_is_a_lease_without_change_on_the_observers_clock(steps: list[tuple[float, bool]]) -> None:
    now, still, beats = 0.0, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        witness = Witness(Path(folder), 5, clock=lambda: now)
        assert not witness.is_dead("a@1")
        for seconds, beat in steps:
            now += seconds
            still += min(seconds, BEAT_SECONDS)  # no more between two looks: the share may have been away
            if beat:
                beats += 1
                (Path(folder) / "a@1").write_text(str(beats))
                os.utime(Path(folder) / "a@1", (0, 0))  # a machine whose clock is wrong by decades
                still = 0.0
            assert witness.is_dead("a@1") == (still >= 5)


def test_a_heartbeat_changes_its_file_and_does_not_bring_its_folder_back(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    with Heartbeat(alive, "a@1", seconds=0.01):
        time.sleep(0.05)
        assert not alive.exists()
        alive.mkdir()
        witness = Witness(alive, 30)
        assert witness.any_alive(["a@1"])
    assert not (alive / "a@1").exists()
    assert not Witness(alive, 0.3).any_alive(["a@1"])  # an orderly end is no sign of life


def test_owners_are_told_apart() -> None:
    one, two = new_owner(machine()), new_owner(machine())
    assert one != two
    assert machine_of(one) == machine_of(two) == machine()


@given(st.lists(st.sampled_from([FREE, BUSY, DONE]), max_size=40), st.integers(-1, 39))
def test_the_next_chunk_is_a_free_one(view: list[str], last: int) -> None:
    number = next_chunk(view, last)
    assert (number is None) == (FREE not in view)
    if number is not None:
        assert view[number] == FREE
        assert number == last + 1 or last + 1 >= len(view) or view[last + 1] != FREE


def walk(chunks: int, pace: list[int]) -> list[list[int]]:
    """The chunks of each engine, in its order; engine n needs pace[n] ticks a chunk."""
    view, last, taken = [FREE] * chunks, [-1] * len(pace), [[] for _ in pace]  # type: ignore[var-annotated]
    for tick in range(chunks * max(pace) + 1):
        for engine, ticks in enumerate(pace):
            if tick % ticks:
                continue
            if taken[engine] and view[last[engine]] == BUSY:
                view[last[engine]] = DONE
            number = next_chunk(view, last[engine])
            if number is not None:
                view[number], last[engine] = BUSY, number
                taken[engine].append(number)
    return taken


def jumps(chunks: list[int]) -> int:
    return sum(after != before + 1 for before, after in zip([-1, *chunks], chunks, strict=False))


@given(st.integers(1, 200), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_engines_divide_the_list_in_few_runs(chunks: int, pace: list[int]) -> None:
    taken = walk(chunks, pace)
    assert Counter(number for one in taken for number in one) == Counter(range(chunks))
    # Each jump halves a remainder: what an engine walks without one stays long.
    assert sum(map(jumps, taken)) <= len(pace) * (1 + chunks.bit_length())


def test_equal_engines_get_equal_ranges() -> None:
    assert walk(9, [1]) == [list(range(9))]
    four = walk(64, [1, 1, 1, 1])
    assert [len(one) for one in four] == [16] * 4
    assert [jumps(one) for one in four] == [0, 1, 1, 1]


def add_one(work: Path, owner: str) -> None:
    for _ in range(8):
        with folder_lock(work, owner, Witness(work / "alive", 60)):
            counter = work.parent / "counter"
            number = int(counter.read_text()) if counter.exists() else 0
            time.sleep(0.003)
            counter.write_text(str(number + 1))
            if number % 5 == 4:  # as who ends a pass does
                work.rename(work.with_name(f"old-{number}"))


def test_the_folder_has_one_master_at_a_time(tmp_path: Path) -> None:
    processes = [FORK.Process(target=add_one, args=(tmp_path / "work", f"m{n}@1")) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "counter").read_text() == "32"


def test_a_dead_master_is_followed(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "lock").mkdir(parents=True)
    for dead in ("here@1", "elsewhere@1"):
        chains = Chains(work / "lock", dead)
        assert chains.claim("folder", chains.states(["folder"])["folder"])
        begin = time.monotonic()
        with folder_lock(work, "here@2", Witness(work / "alive", 0.5)):
            waited = time.monotonic() - begin
        assert (waited >= 0.5) == (dead == "elsewhere@1")  # a former process of this machine is surely gone
