"""Who is asked, about which candidates, and the target's rank, against counting by hand.

Shapes: N users asked, C candidates of a user, I items, B users of a query, L history length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.data_shards.candidates import NO_ITEM
from recloom.data_shards.splits import Interactions
from recloom.data_shards.tables import Tables, assemble_tables
from recloom.trainer.collaborative import mf
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.data import TopKData, pad_histories
from recloom.trainer.config_io import build_config
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec.asked import GROUPS, Asked, asked_full, asked_samples
from recloom.trainer.systems.a_llmrec.prepare import Task, load_task
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig, ScenarioBlock

NUM_USERS, NUM_ITEMS = 60, 40
PLAIN: dict[str, Any] = {
    "name": "small",
    "system": "a_llmrec",
    "data": {"source": "movielens", "variant": "100k"},
    "model": {"path": "none", "dtype": "float32"},
    "backbones": {"sequential": {"model": "sasrec"}},
}


def small_tables() -> Tables:
    """Histories of 1 to 12 different items, low ids more often; two users have all the items but one."""
    rng = np.random.default_rng(4)
    weight_I = 1 / np.arange(3, NUM_ITEMS + 3)
    sizes = [NUM_ITEMS - 1, NUM_ITEMS - 1, *rng.integers(1, 13, NUM_USERS - 2)]
    walks = [rng.choice(NUM_ITEMS, size, replace=False, p=weight_I / weight_I.sum()) for size in sizes]
    users = [f"u{user:02}" for user, size in enumerate(sizes) for _ in range(size)]
    items = [f"i{item:02}" for walk in walks for item in walk]
    rows = {"user_key": users, "item_key": items, "timestamp": pa.array(range(len(users)), pa.int64())}
    words = ("Alien", "Heat of the night", "Birds, The", "Fargo one two three")
    titles = [f"{words[item % 4]} ({1900 + item})" for item in range(NUM_ITEMS)]
    keys = [f"i{item:02}" for item in range(NUM_ITEMS)]
    known = pa.table({"item_key": keys, "title": titles})
    return assemble_tables("small", pa.table(rows), known, pa.table({"user_key": sorted(set(users))}))


def small_run(folder: Path, **changes: Any) -> Run[ALLMRecConfig]:
    """A run that stage prepare has left, with these top-level settings in place of PLAIN's."""
    config = build_config(PLAIN | changes, "test")
    assert isinstance(config, ALLMRecConfig)
    run = Run(config, folder, folder / "cache")
    small_tables().save(run.path("data/tables"))
    return run


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return load_task(small_run(tmp_path_factory.mktemp("task"), scenario={"negatives": 9}))


@pytest.fixture(scope="module")
def backbone(task: Task) -> Backbone:
    topk = task.scenario.splits.topk
    data = TopKData.from_split(topk, task.tables.num_users, task.tables.num_items)
    return mf.MF.build(data, mf.Settings(embedding=8)).eval()


def pairs(rows: Interactions) -> list[tuple[int, int]]:
    return list(zip(rows.user_N.tolist(), rows.item_N.tolist(), strict=True))


def group(asked: Asked, name: str) -> list[tuple[int, int]]:
    return pairs(asked.rows.select(asked.groups[name]))


def lists_of(asked: Asked) -> dict[int, list[int]]:
    return {user: asked.candidates(n) for n, user in enumerate(asked.rows.user_N.tolist())}


def test_the_prepared_task(task: Task) -> None:
    """Against the interactions themselves: the last is asked, what is before it may be shown."""
    rows = task.tables.interactions
    walks: list[list[int]] = [[] for _ in range(task.tables.num_users)]
    for user, item in zip(rows["user"].to_pylist(), rows["item"].to_pylist(), strict=True):
        walks[user].append(item)
    asked = [(user, walk[-1]) for user, walk in enumerate(walks) if len(walk) >= 3]
    assert pairs(task.scenario.splits.topk.test) == asked and 30 < len(asked) < NUM_USERS
    for user, walk in enumerate(walks):
        long = len(walk) >= 3
        assert task.train_sequences[user].tolist() == (walk[:-2] if long else walk)
        assert task.histories[user].tolist() == (walk[:-1] if long else [])
    learned = {item for walk in walks for item in (walk[:-2] if len(walk) >= 3 else walk)}
    assert set(np.flatnonzero(task.cold_I)) == set(range(task.tables.num_items)) - learned


def test_everyone_is_asked_unless_a_sample_is_wanted(task: Task) -> None:
    asked = asked_samples(task, ScenarioBlock())
    assert pairs(asked.rows) == pairs(task.scenario.splits.topk.test) == group(asked, "overall")
    assert set(asked.groups) == {"overall", *GROUPS}
    for n, (user, target) in enumerate(pairs(asked.rows)):
        shown = asked.candidates(n)
        others = set(shown) - {target}
        own = {*task.histories[user].tolist(), target}
        assert len(set(shown)) == len(shown) == min(10, 1 + task.tables.num_items - len(own))
        assert target in shown and not others & own
    assert min(len(asked.candidates(n)) for n in range(len(asked.rows))) < 10, "some lists are filled up"


def test_warm_and_cold_are_the_outer_thirds_of_the_catalogue(task: Task) -> None:
    count_I = np.bincount(task.scenario.splits.topk.train.item_N, minlength=task.tables.num_items)
    order = sorted(range(task.tables.num_items), key=lambda item: (-count_I[item], item))
    size = task.tables.num_items * 35 // 100
    members = {"warm": set(order[:size]), "cold": set(order[-size:])}
    asked = asked_samples(task, ScenarioBlock())
    for name in GROUPS:
        want = [pair for pair in pairs(task.scenario.splits.topk.test) if pair[1] in members[name]]
        assert group(asked, name) == want and len(want) > 3


@pytest.mark.parametrize("users", [1, 12, 1000])
@pytest.mark.parametrize("group_users", [None, 1, 6, 1000])
def test_sample_sizes(task: Task, users: int, group_users: int | None) -> None:
    asked = asked_samples(task, ScenarioBlock(users=users, group_users=group_users))
    everyone = asked_samples(task, ScenarioBlock())
    assert len(group(asked, "overall")) == min(users, len(everyone.rows))
    for name in GROUPS:
        within = set(group(asked, "overall")) & set(group(everyone, name))
        assert within <= set(group(asked, name)) <= set(group(everyone, name))
        least = min(group_users or 0, len(group(everyone, name)))
        assert len(group(asked, name)) == max(len(within), least)
    assert np.logical_or.reduce(list(asked.groups.values())).all(), "nobody is asked for nothing"
    assert (np.diff(asked.rows.user_N) > 0).all()


@settings(max_examples=60, derandomize=True)
@given(
    fewer=st.integers(1, 60),
    more=st.integers(0, 60),
    group_fewer=st.none() | st.integers(1, 30),
    group_more=st.integers(0, 30),
    seed=st.integers(0, 5),
)
def test_a_larger_sample_holds_the_smaller_one(
    task: Task, fewer: int, more: int, group_fewer: int | None, group_more: int, seed: int
) -> None:
    """In every group; and the candidates of a user do not depend on who else is asked."""
    group_larger = None if group_fewer is None else group_fewer + group_more
    small = asked_samples(task, ScenarioBlock(users=fewer, group_users=group_fewer, seed=seed))
    large = asked_samples(task, ScenarioBlock(users=fewer + more, group_users=group_larger, seed=seed))
    for name in small.groups:
        assert set(group(small, name)) <= set(group(large, name))
    assert lists_of(small).items() <= lists_of(large).items()


def test_the_sample_depends_on_the_scenarios_seed_alone(tmp_path: Path) -> None:
    def asked(folder: str, run_seed: int, **scenario: Any) -> Asked:
        drawn = {"negatives": 9, "users": 12, **scenario}
        run = small_run(tmp_path / folder, seed=run_seed, scenario=drawn)
        return asked_samples(load_task(run), run.config.scenario)

    one, other, moved = asked("a", 1), asked("b", 2), asked("c", 1, seed=7)
    assert lists_of(one) == lists_of(other) and list(lists_of(one)) == list(lists_of(other))
    assert all(np.array_equal(one.groups[name], other.groups[name]) for name in one.groups)
    assert set(lists_of(one)) != set(lists_of(moved))
    both = set(lists_of(one)) & set(lists_of(moved))
    assert both and any(lists_of(one)[user] != lists_of(moved)[user] for user in both)


def test_other_scenarios_are_one_group(tmp_path: Path) -> None:
    settings = {"name": "cold_users", "truncated_cold_users": 8, "negatives": 9, "users": 5}
    run = small_run(tmp_path, scenario=settings)
    task = load_task(run)
    asked = asked_samples(task, run.config.scenario)
    assert set(asked.groups) == {"cold_users"} and len(asked.rows) == 5
    for user, history in zip(asked.rows.user_N, asked.histories(task), strict=True):
        assert len(history) == 2 and not len(task.train_sequences[user])


def rank_by_hand(scores: list[float], items: list[int], target: int) -> float:
    if target not in items:
        return float("inf")
    own = scores[items.index(target)]
    better_or_tied = [
        score
        for score, item in zip(scores, items, strict=True)
        if item not in (target, NO_ITEM) and not score < own
    ]
    return 1.0 + len(better_or_tied)


@settings(max_examples=300, derandomize=True)
@given(data=st.data())
def test_ranks(data: st.DataObject) -> None:
    """Ties are common; lists are filled up with NO_ITEM; a target may be missing."""
    width = data.draw(st.integers(1, 6))
    rows, scores, targets = [], [], []
    for _ in range(data.draw(st.integers(1, 4))):
        items = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=width, unique=True))
        value = st.sampled_from([-np.inf, -2.0, -1.0, -0.5, 0.0])
        found = data.draw(st.lists(value, min_size=width, max_size=width))
        filling = width - len(items)
        rows.append(items + [NO_ITEM] * filling)
        scores.append(found[: len(items)] + data.draw(st.sampled_from([[-np.inf], [0.0]])) * filling)
        targets.append(data.draw(st.sampled_from([*items, 99])))
    count = len(rows)
    user_N, target_N = np.arange(count), np.array(targets)
    asked = Asked(Interactions(user_N, target_N, np.full(count, np.nan), user_N), np.array(rows), {})
    want = [rank_by_hand(*row) for row in zip(scores, rows, targets, strict=True)]
    assert asked.ranks(np.array(scores)).tolist() == want


def test_a_nan_score_counts_against_the_target() -> None:
    rows = Interactions(np.arange(2), np.array([3, 3]), np.full(2, np.nan), np.arange(2))
    asked = Asked(rows, np.array([[1, 3, 5], [1, 3, 5]]), {})
    assert asked.ranks(np.array([[np.nan, 0.0, -1.0], [0.0, np.nan, -1.0]])).tolist() == [2.0, 3.0]


def test_the_head_of_the_whole_catalogue(task: Task, backbone: Backbone) -> None:
    few = ScenarioBlock(negatives=4, users=20, group_users=10)
    sample = asked_full(task, few, backbone)
    assert group(sample, "overall_full") == group(asked_samples(task, few), "overall")
    assert (sample.suffix, sample.items_NC.shape) == ("_full", (20, 5))
    asked = asked_full(task, ScenarioBlock(negatives=4), backbone)
    assert pairs(asked.rows) == pairs(task.scenario.splits.topk.test)
    assert lists_of(sample).items() <= lists_of(asked).items()
    for n, user in enumerate(asked.rows.user_N.tolist()):
        history = task.histories[user]
        padded_BL = pad_histories([history], backbone.history_length, backbone.num_items)
        with torch.no_grad():
            scores_I = backbone.score(torch.tensor([user]), padded_BL)[0].tolist()
        unseen = sorted(set(range(NUM_ITEMS)) - set(history.tolist()), key=lambda item: -scores_I[item])
        assert asked.candidates(n) == unseen[:5]
    assert {len(shown) for shown in lists_of(asked).values()} == {2, 5}, "two users have seen nearly all"
    reached = [target in asked.candidates(n) for n, (_, target) in enumerate(pairs(asked.rows))]
    assert any(reached) and not all(reached), "some targets are out of reach"
