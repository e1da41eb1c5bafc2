"""Measurements as rows: one a metric and scenario, one a user of each; what was written reads back.

Shapes: N test rows asked.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from recloom.trainer.report.read import RESULT_FIELDS
from recloom.trainer.results import AskedUsers, Results, everyone

ASKED = AskedUsers(
    task="direct",
    backbone="mf",
    protocol="among 20",
    users_N=np.array([7, 2, 5]),
    count_U=np.arange(8) * 10,
    groups={**everyone(3), "warm": np.array([True, False, True]), "cold": np.zeros(3, bool)},
)


def test_rows_of_each_scenario_that_counts_anyone(tmp_path: Path) -> None:
    results = Results("small", 3)
    results.add(ASKED, "X", {"H@1": np.array([1.0, 0.0, 0.0]), "MRR": np.array([1.0, 0.5, 0.25])})
    results.write(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(row["metric"], row["scenario"], row["value"], row["users"]) for row in rows] == [
        ("H@1", "overall", 1 / 3, 3),
        ("H@1", "warm", 0.5, 2),
        ("MRR", "overall", 1.75 / 3, 3),
        ("MRR", "warm", 0.625, 2),
    ]
    told = {"dataset": "small", "task": "direct", "split": "test", "backbone": "mf", "method": "X", "seed": 3}
    assert all(told.items() <= row.items() and row["protocol"] == "among 20" for row in rows)
    assert all(list(row) == list(RESULT_FIELDS) for row in rows)
    table = pq.read_table(tmp_path / "per_user.parquet").to_pylist()
    users = [row for row in table if row["metric"] == "MRR"]
    assert [(row["scenario"], row["user"], row["num_interactions"], row["value"]) for row in users] == [
        ("overall", 7, 70, 1.0),
        ("overall", 2, 20, 0.5),
        ("overall", 5, 50, 0.25),
        ("warm", 7, 70, 1.0),
        ("warm", 5, 50, 0.25),
    ]


def test_a_number_by_itself_has_no_users() -> None:
    """It may be of other things than test rows, under a protocol of its own."""
    results = Results("small", 3)
    results.add_row(ASKED, "X", "RMSE", np.float64(0.5), 3)
    results.add_row(ASKED, "X", "invalid_rate", 0.1, 40, protocol="answers of the LLM")
    assert [(row["users"], row["protocol"]) for row in results.rows] == [
        (3, "among 20"),
        (40, "answers of the LLM"),
    ]
    assert results.per_user == []
