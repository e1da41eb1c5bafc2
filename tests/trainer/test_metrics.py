"""Metrics against hand-computed values and, on random lists, against ranx."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.trainer import metrics

NUM_ITEMS = 12


def test_one_target_by_hand() -> None:
    ranks_U = np.array([1, 2, 3, 4, math.inf])
    assert metrics.hit_rate(ranks_U, 3).tolist() == [1, 1, 1, 0, 0]
    np.testing.assert_allclose(metrics.ndcg(ranks_U, 3), [1, 0.6309297535714575, 0.5, 0, 0])
    np.testing.assert_allclose(metrics.mrr(ranks_U), [1, 1 / 2, 1 / 3, 1 / 4, 0])
    np.testing.assert_allclose(metrics.mrr(ranks_U, 3), [1, 1 / 2, 1 / 3, 0, 0])


def test_ideal_is_the_achievable_one() -> None:
    ranks_UT = np.array([[1, 2, 3], [2, math.inf, math.inf], [1, math.inf, math.inf]])
    num_targets_U = np.array([3, 1, 2])
    got_U = metrics.ndcg_multi(ranks_UT, num_targets_U, k=2)
    second = 1 / math.log2(3)
    np.testing.assert_allclose(got_U, [1, second, 1 / (1 + second)])
    np.testing.assert_allclose(metrics.recall_multi(ranks_UT, num_targets_U, k=2), [2 / 3, 1, 1 / 2])


@pytest.mark.parametrize("ranks", [[0.0, 1.0], [math.nan], [-1.0]])
def test_impossible_ranks_are_refused(ranks: list[float]) -> None:
    with pytest.raises(ValueError, match="1-based"):
        metrics.hit_rate(np.array(ranks), 3)


def test_bad_counts_are_refused() -> None:
    one = np.array([[1.0, 2.0]])
    with pytest.raises(ValueError, match="at least one target"):
        metrics.ndcg_multi(one, np.array([0]), 3)
    with pytest.raises(ValueError, match="more ranks than targets"):
        metrics.ndcg_multi(one, np.array([1]), 3)
    with pytest.raises(ValueError, match="k = 0"):
        metrics.ndcg(one, 0)


def test_rating_metrics_by_hand() -> None:
    predicted_N, true_N = np.array([3.0, 5.0, 1.0]), np.array([4, 5, 3])
    assert metrics.rmse(predicted_N, true_N) == pytest.approx(math.sqrt(5 / 3))
    assert metrics.mae(predicted_N, true_N) == pytest.approx(1.0)
    for bad in (np.array([1.0]), np.array([1.0, math.nan, 2.0])):
        with pytest.raises(ValueError, match="no nan"):
            metrics.rmse(bad, true_N)
    with pytest.raises(ValueError, match="at least one"):
        metrics.mae(np.empty(0), np.empty(0))


def test_table_of_means() -> None:
    table = metrics.one_target_metrics(np.array([1, 4, math.inf]), ks=(3, 5))
    assert set(table) == {"H@3", "N@3", "H@5", "N@5", "MRR"}
    assert metrics.means(table)["H@5"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no users"):
        metrics.means({"H@3": np.empty(0)})


@pytest.fixture(scope="module")
def ranx() -> Iterator[ModuleType]:
    """ranx in plain Python: compiling its metrics takes over a minute on a fresh machine."""
    config = importlib.import_module("numba").config
    compiled, config.DISABLE_JIT = config.DISABLE_JIT, True
    yield importlib.import_module("ranx")
    config.DISABLE_JIT = compiled


lists_of_queries = st.lists(
    st.tuples(st.permutations(range(NUM_ITEMS)), st.integers(1, 8), st.integers(1, NUM_ITEMS)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=50, deadline=None)
@given(queries=lists_of_queries, k=st.integers(1, NUM_ITEMS))
def test_equal_to_ranx(ranx: ModuleType, queries: list[tuple[list[int], int, int]], k: int) -> None:
    """Each query: a shuffled catalogue, how many of items 0.. are relevant, how many are retrieved."""
    qrels, run, ranks_UT = {}, {}, np.full((len(queries), 8), math.inf)
    for row, (order, num_targets, retrieved) in enumerate(queries):
        qrels[f"q{row:03}"] = {f"i{item}": 1 for item in range(num_targets)}
        run[f"q{row:03}"] = {f"i{item}": 1.0 - place / 100 for place, item in enumerate(order[:retrieved])}
        places = [order.index(item) + 1 for item in range(num_targets)]
        ranks_UT[row, :num_targets] = [place if place <= retrieved else math.inf for place in places]
    num_targets_U = np.array([num for _, num, _ in queries])
    names = [f"ndcg@{k}", f"recall@{k}", f"hit_rate@{k}", f"mrr@{k}"]
    want = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), names, return_mean=False)
    best_U = ranks_UT.min(axis=1)
    np.testing.assert_allclose(metrics.ndcg_multi(ranks_UT, num_targets_U, k), want[names[0]], atol=1e-12)
    np.testing.assert_allclose(metrics.recall_multi(ranks_UT, num_targets_U, k), want[names[1]], atol=1e-12)
    np.testing.assert_allclose(metrics.hit_rate(best_U, k), want[names[2]], atol=1e-12)
    np.testing.assert_allclose(metrics.mrr(best_U, k), want[names[3]], atol=1e-12)
    single_U = num_targets_U == 1
    np.testing.assert_allclose(
        metrics.ndcg(ranks_UT[single_U, 0], k), np.asarray(want[names[0]])[single_U], atol=1e-12
    )
