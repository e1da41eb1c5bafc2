"""Equations (5) to (7) of Llama4Rec against a slow reference, and how answers become orders."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloom.data_shards.splits import Interactions
from recloom.trainer.config_io import build_config
from recloom.trainer.requests import Answer
from recloom.trainer.stages import Run
from recloom.trainer.systems.llama4rec.aggregate import (
    Activity,
    aggregate_rank,
    aggregated,
    llm_weight,
    long_tail_coefficient,
)
from recloom.trainer.systems.llama4rec.answers import ranked_answers, rated_answers, read_rating
from recloom.trainer.systems.llama4rec.questions import CandidateLists

sys.path.insert(0, str(Path(__file__).parents[2] / "launcher"))
from small_recipe import small_config


@given(
    counts=st.lists(st.integers(1, 500), min_size=2, max_size=20),
    alpha_1=st.floats(0.1, 0.9),
    alpha_2=st.floats(0.1, 0.9),
)
def test_weight_is_equation_7(counts: list[int], alpha_1: float, alpha_2: float) -> None:
    coefficient = long_tail_coefficient(np.array(counts))
    low, high = coefficient.min(), coefficient.max()
    for count, weight in zip(counts, llm_weight(coefficient, low, high, alpha_1, alpha_2), strict=True):
        own, least, most = (math.log(n + 1) for n in (count, min(counts), max(counts)))
        tail = 0.0 if most == least else (most - own) / (most - least)
        assert weight == pytest.approx(max(tail, alpha_2) * alpha_1)


def test_less_active_users_listen_more_to_the_llm() -> None:
    active = Activity(np.array([3, 30, 300]), math.log(4), math.log(301))
    weights = active.weight(np.array([0, 1, 2]), (0.9, 0.1))
    assert weights[0] == pytest.approx(0.9) and weights[0] > weights[1] > weights[2] == pytest.approx(0.09)


@given(order=st.permutations(range(6)), alpha=st.floats(0, 1), target=st.integers(0, 5), c=st.floats(0.5, 3))
def test_rank_is_equation_6(order: list[int], alpha: float, target: int, c: float) -> None:
    candidates = [3, 1, 4, 0, 5, 2]
    utility = {
        item: alpha * -(order.index(item) + 1) * c + (1 - alpha) * -(candidates.index(item) + 1) * c
        for item in candidates
    }
    better = sum(utility[item] > utility[target] + 1e-9 for item in candidates)
    tied = sum(abs(utility[item] - utility[target]) <= 1e-9 for item in candidates)
    rank = aggregate_rank(list(order), candidates, target, alpha, c)
    assert rank == better + tied, "ties count against the target"


def test_weight_0_is_the_backbone_and_weight_1_the_llm() -> None:
    assert aggregate_rank([2, 1, 0], [0, 1, 2], 2, 0.0, 1.0) == 3
    assert aggregate_rank([2, 1, 0], [0, 1, 2], 2, 1.0, 1.0) == 1
    assert aggregate_rank([2, 1, 0], [0, 1, 2], 7, 1.0, 1.0) == np.inf


def answer(text: str, user: int = 0, scores: tuple[float, ...] = (), error: str | None = None) -> Answer:
    return Answer("k", text, (), 0.0, scores, "stop", error, {"user": user})


TITLES = ["A (1990)", "B (1991)", "C (1992)", "D (1993)"]
LISTS = CandidateLists(
    users_B=np.array([0, 1, 2]),
    targets_B=np.array([2, 0, 3]),
    ranks_B=np.array([3.0, 1.0, 7.0]),
    items_Bk=np.array([[0, 1, 2], [0, 2, -1], [1, 0, 2]]),
)


def test_named_items_lead_and_the_rest_keep_the_backbones_order() -> None:
    ranked = ranked_answers([answer("C (1992)\nA (1990)"), answer("nonsense\nC (1992)", 1)], LISTS, TITLES)
    assert ranked.orders == [[2, 0, 1], [2, 0], [1, 0, 2]]
    assert (ranked.num_asked, ranked.num_bad) == (2, 1)
    assert LISTS.reachable_B.tolist() == [True, True, False]


def test_expected_rating_is_the_mean_under_renormalised_probabilities() -> None:
    scores = tuple(math.log(p) for p in (0.05, 0.05, 0.1, 0.1, 0.2))
    expected = sum(p * r for p, r in zip((0.1, 0.1, 0.2, 0.2, 0.4), range(1, 6), strict=True))
    assert read_rating(answer("", scores=scores), [1.0, 2.0, 3.0, 4.0, 5.0], (1, 5)) == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("4", 4.0),
        (" 4.5\nmore", 4.5),
        ("good", None),
        ("2001: A Space Odyssey", None),
        ("6", None),
        ("", None),
    ],
)
def test_only_a_number_on_the_scale_is_a_rating(text: str, rating: float | None) -> None:
    assert read_rating(answer(text), [], (1, 5)) == rating


def test_unreadable_ratings_are_counted_and_replaced_by_the_backbones() -> None:
    rows = Interactions(np.array([0, 1]), np.array([5, 6]), np.array([3.0, 4.0]), np.array([0, 1]))
    rated = rated_answers([answer("2", 0), answer("?", 1)], rows, [], np.array([3.5, 3.7]), (1, 5))
    assert rated.values_N.tolist() == [2.0, 3.7]
    assert (rated.num_asked, rated.num_bad) == (2, 1)


def test_asking_only_reachable_users_changes_no_metric(tmp_path: Path) -> None:
    """`rank.reachable_only`: a target that is no candidate has rank inf under any answer."""
    rng = np.random.default_rng(3)
    items_BK = np.stack([rng.permutation(30)[:10] for _ in range(40)])
    targets_B = rng.integers(0, 30, 40)
    lists = CandidateLists(np.arange(40), targets_B, np.ones(40), items_BK)
    titles = [f"Film {k}" for k in range(30)]
    answers = [
        answer("\n".join(titles[i] for i in rng.permutation(row)), user) for user, row in enumerate(items_BK)
    ]
    run = Run(build_config(small_config(tmp_path, Path("x/y")), "test"), tmp_path, tmp_path)
    active = Activity(np.arange(1, 41), math.log(2), math.log(41))
    reachable = [a for a in answers if lists.reachable_B[a.meta["user"]]]
    assert 0 < len(reachable) < 40
    for alphas in ((0.1, 0.9), (0.9, 0.3)):
        ranks = [
            aggregated(run, lists, ranked_answers(asked, lists, titles), active, alphas)
            for asked in (answers, reachable)
        ]
        assert np.array_equal(*ranks)
