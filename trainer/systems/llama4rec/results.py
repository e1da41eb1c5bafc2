"""What Llama4Rec measures: top-k lists and ratings, and what bounds or spoils the LLM's answers.

Shapes: B users with a target, N rated rows, U users of the data set.
"""

from __future__ import annotations

import numpy as np

from recloom.data_shards.splits import Interactions
from recloom.data_shards.tables import Tables
from recloom.trainer import metrics
from recloom.trainer.results import AskedUsers, Results, everyone
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig


def topk_users(
    config: Llama4RecConfig, tables: Tables, task: str, users_B: np.ndarray, count_U: np.ndarray
) -> AskedUsers:
    protocol = f"full catalogue, {tables.num_items:,} items, LLM re-ranks top {config.rank.top_k}"
    backbone = getattr(config.backbones, task).model
    return AskedUsers(task, backbone, protocol, users_B, count_U, everyone(len(users_B)))


def rating_users(config: Llama4RecConfig, rows: Interactions, count_U: np.ndarray) -> AskedUsers:
    protocol, backbone = "last rating of each user asked", config.backbones.rating.model
    return AskedUsers("rating", backbone, protocol, rows.user_N, count_U, everyone(len(rows)))


def add_ceiling(
    results: Results, asked: AskedUsers, method: str, reachable_B: np.ndarray, top_k: int
) -> None:
    """The share of users whose target is among the k' candidates: no re-ranking can beat it."""
    results.add_mean(asked, method, f"H@{top_k}", reachable_B)


def add_rating(
    results: Results, asked: AskedUsers, method: str, predicted_N: np.ndarray, rating_N: np.ndarray
) -> None:
    """RMSE and MAE over the users that were asked; squared and absolute errors of each."""
    for name, function in (("RMSE", metrics.rmse), ("MAE", metrics.mae)):
        results.add_row(asked, method, name, function(predicted_N, rating_N), len(rating_N))
    error_N = predicted_N - rating_N
    results.add_users(asked, method, "SE", error_N**2)
    results.add_users(asked, method, "AE", np.abs(error_N))


def add_invalid(results: Results, asked: AskedUsers, method: str, bad: int, questions: int) -> None:
    """The share of the LLM's answers that could not be read as asked."""
    share, protocol = bad / max(1, questions), "answers of the LLM"
    results.add_row(asked, method, "invalid_rate", share, questions, protocol=protocol)
