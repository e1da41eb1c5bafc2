"""Ranking and rating metrics, one value a user, so that they can be paired in a test and grouped.

Shapes: U users, T targets of a user, N ratings.

A rank is 1-based: 1 is the top of the list. `inf` stands for a target that is not in the list (not
retrieved, or masked). nan is refused: it is a bug upstream, not a miss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

TOPK = (3, 5, 10)


def checked_ranks(ranks: np.ndarray, k: int) -> np.ndarray:
    """The ranks as float64; raises ValueError for a rank below 1, a nan, or k below 1."""
    ranks = np.asarray(ranks, dtype=np.float64)
    if not (ranks >= 1).all():
        raise ValueError("ranks are 1-based, with inf for a missing target: found a smaller one or nan.")
    if k < 1:
        raise ValueError(f"k = {k}: the length of the list is at least 1.")
    return ranks


def hit_rate(ranks_U: np.ndarray, k: int) -> np.ndarray:
    """HR@k of one target a user (equal to Recall@k): 1 where the rank is at most k."""
    return (checked_ranks(ranks_U, k) <= k).astype(np.float64)


def ndcg(ranks_U: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k of one target a user: 1 / log2(rank + 1) where the rank is at most k; the ideal is 1."""
    ranks_U = checked_ranks(ranks_U, k)
    return np.where(ranks_U <= k, 1 / np.log2(ranks_U + 1), 0.0)


def mrr(ranks_U: np.ndarray, k: int | None = None) -> np.ndarray:
    """Reciprocal rank of one target a user, 0 where it is missing or beyond k (None: no limit)."""
    ranks_U = checked_ranks(ranks_U, 1 if k is None else k)
    return np.where(ranks_U <= (np.inf if k is None else k), 1 / ranks_U, 0.0)


def recall_multi(ranks_UT: np.ndarray, num_targets_U: np.ndarray, k: int) -> np.ndarray:
    """Recall@k of several targets: found among the first k, over all targets of the user."""
    return hit_rate(ranks_UT, k).sum(axis=1) / checked_targets(ranks_UT, num_targets_U)


def ndcg_multi(ranks_UT: np.ndarray, num_targets_U: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k of several equally relevant targets.

    ranks_UT: ranks of a user's targets, padded with inf to the longest row; num_targets_U: how many
    there are. The ideal is the achievable one: min(k, targets) hits at the top of the list.
    """
    num_targets_U = checked_targets(ranks_UT, num_targets_U)
    ideal_k = np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1))
    return ndcg(ranks_UT, k).sum(axis=1) / ideal_k[np.minimum(num_targets_U, k) - 1]


def checked_targets(ranks_UT: np.ndarray, num_targets_U: np.ndarray) -> np.ndarray:
    """Raises ValueError when a user has no target, or more ranks than targets."""
    num_targets_U = np.asarray(num_targets_U, dtype=np.int64)
    if (num_targets_U < 1).any():
        raise ValueError("every user needs at least one target: leave the others out.")
    if (np.isfinite(ranks_UT).sum(axis=1) > num_targets_U).any():
        raise ValueError("a user has more ranks than targets.")
    return num_targets_U


def topk_metrics(ranks_U: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """H@k and N@k for every k, each with one value a user."""
    pairs = [{f"H@{k}": hit_rate(ranks_U, k), f"N@{k}": ndcg(ranks_U, k)} for k in ks]
    return {name: values_U for pair in pairs for name, values_U in pair.items()}


def one_target_metrics(ranks_U: np.ndarray, ks: Sequence[int] = TOPK) -> dict[str, np.ndarray]:
    """H@k and N@k for every k, and MRR, each with one value a user."""
    return {**topk_metrics(ranks_U, ks), "MRR": mrr(ranks_U)}


def means(table: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean over users of every metric; raises ValueError when there are no users."""
    if any(len(values_U) == 0 for values_U in table.values()):
        raise ValueError("no users to average over.")
    return {name: float(np.mean(values_U)) for name, values_U in table.items()}


def rating_errors(predicted_N: np.ndarray, true_N: np.ndarray) -> np.ndarray:
    """predicted - true in stars; raises ValueError for unequal lengths, no rows, or a nan."""
    errors_N = np.asarray(predicted_N, dtype=np.float64) - np.asarray(true_N, dtype=np.float64)
    if np.shape(predicted_N) != np.shape(true_N) or errors_N.size == 0 or np.isnan(errors_N).any():
        raise ValueError("rating metrics need equally many predictions and ratings, at least one, no nan.")
    return errors_N


def rmse(predicted_N: np.ndarray, true_N: np.ndarray) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.mean(rating_errors(predicted_N, true_N) ** 2)))


def mae(predicted_N: np.ndarray, true_N: np.ndarray) -> float:
    """Mean absolute error."""
    return float(np.mean(np.abs(rating_errors(predicted_N, true_N))))
