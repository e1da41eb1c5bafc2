"""Rows of results.jsonl and per_user.parquet: what every system measured at test.

Shapes: N test rows asked, U users of the data set.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recloom.data_shards.artifacts import atomic_write_bytes, atomic_write_text
from recloom.data_shards.scenarios import OVERALL


@dataclass(frozen=True)
class AskedUsers:
    """The test rows of a task, the same for all methods that are compared.

    Attributes:
        backbone: the conventional recommender that the LLM is combined or compared with.
        protocol: what a target is ranked among or how it is asked for, in words.
        users_N: the user of each row. count_U: interactions that each user was learned from.
        groups: by scenario that is reported, which rows it counts.
    """

    task: str
    backbone: str
    protocol: str
    users_N: np.ndarray
    count_U: np.ndarray
    groups: Mapping[str, np.ndarray]


def everyone(count: int) -> dict[str, np.ndarray]:
    """The one scenario of a system that reports no other: all rows."""
    return {OVERALL: np.ones(count, bool)}


class Results:
    """Collects measurements: one row a metric and scenario, and one row a user of each."""

    def __init__(self, dataset: str, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.rows: list[dict[str, Any]] = []
        self.per_user: list[dict[str, Any]] = []

    def add(self, asked: AskedUsers, method: str, values: Mapping[str, np.ndarray]) -> None:
        """Values (N,) by metric, and their mean, in each scenario that counts any row."""
        for metric, values_N in values.items():
            for scenario, mask_N in asked.groups.items():
                if mask_N.any():
                    self.add_mean(asked, method, metric, values_N, scenario)
                    self.add_users(asked, method, metric, values_N, scenario)

    def add_mean(
        self, asked: AskedUsers, method: str, metric: str, values_N: np.ndarray, scenario: str = OVERALL
    ) -> None:
        mask_N = asked.groups[scenario]
        self.add_row(asked, method, metric, values_N[mask_N].mean(), int(mask_N.sum()), scenario)

    def add_row(
        self,
        asked: AskedUsers,
        method: str,
        metric: str,
        value: float,
        users: int,
        scenario: str = OVERALL,
        protocol: str | None = None,
    ) -> None:
        """One number by itself. users: how many it is of; protocol: where it is not that of `asked`."""
        self.rows.append(
            {
                "dataset": self.dataset,
                "task": asked.task,
                "scenario": scenario,
                "split": "test",
                "backbone": asked.backbone,
                "method": method,
                "metric": metric,
                "value": float(value),
                "seed": self.seed,
                "users": int(users),
                "protocol": asked.protocol if protocol is None else protocol,
            }
        )

    def add_users(
        self, asked: AskedUsers, method: str, metric: str, values_N: np.ndarray, scenario: str = OVERALL
    ) -> None:
        """The values alone, of which the page makes its plots and the comparisons their tests."""
        place = {"task": asked.task, "scenario": scenario, "backbone": asked.backbone}
        place |= {"method": method, "metric": metric}
        mask_N = asked.groups[scenario]
        for user, value in zip(asked.users_N[mask_N].tolist(), values_N[mask_N].tolist(), strict=True):
            told = {"user": user, "num_interactions": int(asked.count_U[user]), "value": float(value)}
            self.per_user.append({**place, **told})

    def write(self, folder: Path) -> None:
        """results.jsonl and per_user.parquet."""
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        atomic_write_text(folder / "results.jsonl", lines)
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self.per_user), buffer)
        atomic_write_bytes(folder / "per_user.parquet", buffer.getvalue())
