"""Who is learned from and who is asked, against the interactions themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.data_shards.errors import UserError
from recloom.data_shards.tables import Tables, assemble_tables
from recloom.trainer.config_io import build_config
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser.backbones import data_of
from recloom.trainer.systems.laser.settings import LaserConfig
from recloom.trainer.systems.laser.task import Example, Task, load_task

NUM_USERS, NUM_ITEMS = 40, 25
SIZES = tuple(1 + user % 8 for user in range(NUM_USERS))
PLAIN: dict[str, Any] = {
    "name": "small",
    "system": "laser",
    "data": {"source": "movielens", "variant": "100k"},
    "model": {"path": "none", "dtype": "float32"},
    "backbones": {"sequential": {"model": "sasrec"}},
}
PARTS: dict[str, str] = {"users": "train", "validation": "valid", "test": "test"}


def walks() -> list[list[int]]:
    """1 to 8 items a user; the last one is now and then one that the user has already."""
    rng = np.random.default_rng(4)
    found = [rng.choice(NUM_ITEMS, size, replace=False).tolist() for size in SIZES]
    return [[*walk[:-1], walk[0]] if len(walk) > 5 else walk for walk in found]


def small_tables() -> Tables:
    users = [f"u{user:02}" for user, walk in enumerate(walks()) for _ in walk]
    items = [f"i{item:02}" for walk in walks() for item in walk]
    rows = {"user_key": users, "item_key": items, "timestamp": pa.array(range(len(users)), pa.int64())}
    keys = [f"i{item:02}" for item in range(NUM_ITEMS)]
    known = pa.table({"item_key": keys, "title": [f"Thing {item}" for item in range(NUM_ITEMS)]})
    return assemble_tables("small", pa.table(rows), known, pa.table({"user_key": sorted(set(users))}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage prepare leaves; nothing else is written."""
    folder = tmp_path_factory.mktemp("task")
    small_tables().save(folder / "data/tables")
    return folder


def task_of(folder: Path, **learn: Any) -> Task:
    config = build_config(PLAIN | {"learn": learn}, "test")
    assert isinstance(config, LaserConfig)
    return load_task(Run(config, folder, folder / "cache"))


def told(examples: list[Example]) -> dict[tuple[int, int], tuple[list[int], int]]:
    """By user and length of the history; fails where one is there twice."""
    found = {(e.user, len(e.history)): (e.history.tolist(), e.target) for e in examples}
    assert len(found) == len(examples)
    return found


def expected(part: str, targets: Literal["last", "all"] = "last") -> dict[tuple[int, int], Any]:
    """Leave-one-out by hand: users of fewer than three items are only learned from, none without history."""
    found = {}
    for user, walk in enumerate(walks()):
        asked = len(walk) >= 3
        last = {"train": len(walk) - (3 if asked else 1), "valid": len(walk) - 2, "test": len(walk) - 1}[part]
        first = 1 if part == "train" and targets == "all" else last
        for place in range(max(first, 1), last + 1) if asked or part == "train" else ():
            found[user, place] = (walk[:place], walk[place])
    return found


@pytest.mark.parametrize("targets", ["last", "all"])
def test_examples_are_the_leave_one_out_split(folder: Path, targets: Literal["last", "all"]) -> None:
    task = task_of(folder, targets=targets)
    # ids are those of the table, whose items are numbered in the order of their keys
    ids = {key: n for n, key in enumerate(task.tables.items["item_key"].to_pylist())}
    number = [ids[f"i{item:02}"] for item in range(NUM_ITEMS) if f"i{item:02}" in ids]
    assert number == list(range(NUM_ITEMS)), "the catalogue keeps its order"
    assert told(task.train) == expected("train", targets) and len(task.train) > 20
    assert told(task.valid) == expected("valid") and told(task.test) == expected("test")
    assert [e.user for e in task.test] == sorted(e.user for e in task.test)
    assert any(e.target in e.history for e in task.test), "a repeated item stays a target"


def test_users_without_a_history_are_not_asked(folder: Path) -> None:
    for examples in (task_of(folder, targets="all").train, task_of(folder).valid, task_of(folder).test):
        assert min(len(example.history) for example in examples) >= 1
    one_item = {user for user, size in enumerate(SIZES) if size == 1}
    learned = {example.user for example in task_of(folder, targets="all").train}
    assert one_item and not one_item & learned


def test_training_samples_are_drawn_from_those_of_all_users(folder: Path) -> None:
    some, more, everything = (
        told(task_of(folder, targets="all", samples=count).train) for count in (12, 30, None)
    )
    assert some.items() < more.items() < everything.items() and len(some) == 12 and len(more) == 30
    assert len({user for user, _ in more}) > 5, "of many users"
    assert told(task_of(folder, samples=10**6).train) == told(task_of(folder).train)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.sampled_from(sorted(PARTS)), st.integers(1, 45), st.integers(0, 45), st.integers(0, 3))
def test_a_larger_sample_holds_the_smaller(folder: Path, name: str, fewer: int, more: int, seed: int) -> None:
    """Of each part by itself: the others are whole."""
    small, large = (task_of(folder, **{name: n, "seed": seed}) for n in (fewer, fewer + more))
    everyone = task_of(folder)
    part = PARTS[name]
    few, many, all_ = (told(getattr(task, part)) for task in (small, large, everyone))
    assert few.items() <= many.items() <= all_.items()
    assert len(few) == min(fewer, len(all_)) and len(many) == min(fewer + more, len(all_))
    for other in set(PARTS.values()) - {part}:
        assert told(getattr(small, other)) == told(getattr(everyone, other))


def test_samples_differ_by_their_own_seed_and_by_part(folder: Path) -> None:
    one = task_of(folder, users=10, validation=10, test=10)
    other = task_of(folder, users=10, validation=10, test=10, seed=1)
    for part in PARTS.values():
        assert told(getattr(one, part)).keys() != told(getattr(other, part)).keys()
    asked = [{example.user for example in getattr(one, part)} for part in ("valid", "test")]
    assert asked[0] != asked[1], "a stream of draws each"


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_a_share_cuts_what_is_learned_from_and_selected_on(folder: Path, share: float) -> None:
    whole, cut = task_of(folder), task_of(folder, share=share)
    chosen = {int(user) for user in cut.splits.topk.train.user_N}
    assert 0 < len(chosen) <= int(np.ceil(share * NUM_USERS)) and len(chosen) < NUM_USERS
    for part in ("train", "valid"):
        kept = {key: row for key, row in told(getattr(whole, part)).items() if key[0] in chosen}
        assert told(getattr(cut, part)) == kept and 0 < len(kept) < len(getattr(whole, part))
    assert told(cut.test) == told(whole.test), "all users are asked, with their whole history"
    data = data_of(cut)
    assert {user for user, items in enumerate(data.sequences) if len(items)} == chosen
    assert {user for user, item in enumerate(data.valid_items) if item >= 0} <= chosen


def test_a_larger_share_holds_the_smaller(folder: Path) -> None:
    shares = [task_of(folder, share=share) for share in (0.1, 0.3, 0.7, 1.0)]
    users = [{int(user) for user in task.splits.topk.train.user_N} for task in shares]
    assert all(few < many for few, many in zip(users, users[1:], strict=False))


def test_a_sample_for_the_llm_leaves_the_backbone_all(folder: Path) -> None:
    """Unlike a share."""
    sampled, whole = data_of(task_of(folder, users=3)), data_of(task_of(folder))
    assert [items.tolist() for items in sampled.sequences] == [items.tolist() for items in whole.sequences]


def test_nothing_left_is_one_sentence(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^data: no user has enough items to learn on: .*\.$"):
        task_of(folder, share=0.0)
