"""Rows of results.jsonl and per_user.parquet."""

from __future__ import annotations

from typing import Any

import numpy as np

from recloom.data_shards.splits import Interactions
from recloom.data_shards.tables import Tables
from recloom.trainer import metrics
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig


class Results:
    """Collects measurements; one row a metric, and one row a user for the long-tail plot."""

    def __init__(self, tables: Tables, config: Llama4RecConfig) -> None:
        self.tables = tables
        self.config = config
        self.rows: list[dict[str, Any]] = []
        self.per_user: list[dict[str, Any]] = []

    def add(self, task: str, method: str, metric: str, value: float, users: int, protocol: str) -> None:
        self.rows.append(
            {
                "dataset": self.tables.name,
                "task": task,
                "scenario": "overall",
                "split": "test",
                "backbone": getattr(self.config.backbones, task).model,
                "method": method,
                "metric": metric,
                "value": float(value),
                "seed": self.config.seed,
                "users": int(users),
                "protocol": protocol,
            }
        )

    @property
    def ranking_protocol(self) -> str:
        return f"full catalogue, {self.tables.num_items:,} items, LLM re-ranks top {self.config.rank.top_k}"

    def add_topk(
        self, task: str, method: str, users_B: np.ndarray, ranks_B: np.ndarray, count_U: np.ndarray
    ) -> None:
        """H@k and N@k over all users with a target."""
        for k in self.config.evaluate.ks:
            for name, values_B in (
                (f"H@{k}", metrics.hit_rate(ranks_B, k)),
                (f"N@{k}", metrics.ndcg(ranks_B, k)),
            ):
                self.add(task, method, name, values_B.mean(), len(users_B), self.ranking_protocol)
                self.add_per_user(task, method, users_B, count_U, name, values_B)

    def add_ceiling(self, task: str, method: str, reachable_B: np.ndarray) -> None:
        """The share of users whose target is among the k' candidates: no re-ranking can beat it."""
        metric = f"H@{self.config.rank.top_k}"
        self.add(task, method, metric, reachable_B.mean(), len(reachable_B), self.ranking_protocol)

    def add_invalid(self, task: str, method: str, bad: int, asked: int) -> None:
        """The share of the LLM's answers that could not be read as asked."""
        self.add(task, method, "invalid_rate", bad / max(1, asked), asked, "answers of the LLM")

    def add_rating(
        self, method: str, rows: Interactions, predicted_N: np.ndarray, count_U: np.ndarray
    ) -> None:
        """RMSE and MAE over the users that were asked."""
        protocol = "last rating of each user asked"
        for name, function in (("RMSE", metrics.rmse), ("MAE", metrics.mae)):
            self.add("rating", method, name, function(predicted_N, rows.rating_N), len(rows), protocol)
        error_N = predicted_N - rows.rating_N
        self.add_per_user("rating", method, rows.user_N, count_U, "SE", error_N**2)
        self.add_per_user("rating", method, rows.user_N, count_U, "AE", np.abs(error_N))

    def add_per_user(
        self,
        task: str,
        method: str,
        users_B: np.ndarray,
        count_U: np.ndarray,
        metric: str,
        values_B: np.ndarray,
    ) -> None:
        backbone = getattr(self.config.backbones, task).model
        for user, value in zip(users_B.tolist(), values_B.tolist(), strict=True):
            self.per_user.append(
                {
                    "task": task,
                    "backbone": backbone,
                    "method": method,
                    "user": user,
                    "num_interactions": int(count_U[user]),
                    "metric": metric,
                    "value": float(value),
                }
            )
