"""Equations (5) to (7) of Llama4Rec against a slow reference, and how answers become orders."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloom.data_shards.splits import Interactions
from recloom.trainer.requests import Answer
from recloom.trainer.systems.llama4rec.aggregate import aggregated
from recloom.trainer.systems.llama4rec.aggregation import (
    Activity,
    aggregate_rank,
    llm_weight,
    long_tail_coefficient,
)
from recloom.trainer.systems.llama4rec.answers import ranked_answers, rated_answers, read_rating
from recloom.trainer.systems.llama4rec.questions import CandidateLists


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


def answer(
    text: str, user: int = 0, scores: tuple[float, ...] = (), error: str | None = None, **meta: Any
) -> Answer:
    return Answer("k", text, (), 0.0, scores, "stop", error, {"user": user, **meta})


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
    asked = answer("", scores=scores, labels=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert read_rating([asked], (1, 5)) == pytest.approx(expected)


def test_a_label_of_two_tokens_takes_its_share_of_the_first_tokens_probability() -> None:
    """ "1" has probability .3 and is followed by the end (.25) or by "0" (.75), so P(10) = .225."""
    first = answer("", scores=(math.log(0.7), math.log(0.3)), labels=[2.0, None])
    second = answer("", scores=(math.log(0.25), math.log(0.75)), labels=[1.0, 10.0], after=1)
    assert read_rating([first, second], (1, 10)) == pytest.approx(0.7 * 2 + 0.075 * 1 + 0.225 * 10)


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
    assert read_rating([answer(text)], (1, 5)) == rating


def test_unreadable_ratings_are_counted_and_replaced_by_the_backbones() -> None:
    rows = Interactions(np.array([0, 1]), np.array([5, 6]), np.array([3.0, 4.0]), np.array([0, 1]))
    answers = [answer("2", 0, item=5), answer("?", 1, item=6)]
    rated = rated_answers(answers, rows, np.array([3.5, 3.7]), (1, 5))
    assert rated.values_N.tolist() == [2.0, 3.7]
    assert (rated.num_asked, rated.num_bad) == (2, 1)


def test_asking_only_reachable_users_changes_no_metric() -> None:
    """`rank.reachable_only`: a target that is no candidate has rank inf under any answer."""
    rng = np.random.default_rng(3)
    items_BK = np.stack([rng.permutation(30)[:10] for _ in range(40)])
    targets_B = rng.integers(0, 30, 40)
    lists = CandidateLists(np.arange(40), targets_B, np.ones(40), items_BK)
    titles = [f"Film {k}" for k in range(30)]
    answers = [
        answer("\n".join(titles[i] for i in rng.permutation(row)), user) for user, row in enumerate(items_BK)
    ]
    active = Activity(np.arange(1, 41), math.log(2), math.log(41))
    reachable = [a for a in answers if lists.reachable_B[a.meta["user"]]]
    assert 0 < len(reachable) < 40
    for alphas in ((0.1, 0.9), (0.9, 0.3)):
        ranks = [
            aggregated(lists, ranked_answers(asked, lists, titles), active.weight(lists.users_B, alphas), 1.0)
            for asked in (answers, reachable)
        ]
        assert np.array_equal(*ranks)
