"""Stage evaluate: the backbone, the baselines and every method on the whole catalogue (Table 2).

Shapes: N users asked.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recloom.data_shards.artifacts import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    read_manifest,
)
from recloom.data_shards.errors import UserError
from recloom.data_shards.scenarios import item_groups
from recloom.trainer import metrics
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.evaluate import target_ranks
from recloom.trainer.collaborative.registry import load_backbone
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser.backbones import backbone_settings, baseline_folder
from recloom.trainer.systems.laser.methods import Method, asked_methods
from recloom.trainer.systems.laser.parameters import counts
from recloom.trainer.systems.laser.rank import final_folder, ranking_path
from recloom.trainer.systems.laser.settings import LaserConfig
from recloom.trainer.systems.laser.states import BACKBONE
from recloom.trainer.systems.laser.task import Task, load_task

BASE = "Base"
GROUPS = ("warm", "cold")


class Results:
    """Collects measurements: one row a metric, and one row a user."""

    def __init__(self, config: LaserConfig, task: Task) -> None:
        self.config, self.task = config, task
        train = task.splits.topk.train
        self.count_U = np.bincount(train.user_N, minlength=task.tables.num_users)
        targets_N = np.array([example.target for example in task.test])
        masks = item_groups(train, task.tables.num_items)
        self.groups = {"overall": np.ones(len(targets_N), bool)}
        self.groups |= {name: masks[name][targets_N] for name in GROUPS}
        self.rows: list[dict[str, Any]] = []
        self.per_user: list[dict[str, Any]] = []

    def add(self, method: str, ranks_N: np.ndarray, backbone: str = "") -> None:
        """H@k (Recall@k of one target), N@k and MRR, overall and by the target's popularity."""
        for metric, values_N in metrics.one_target_metrics(ranks_N, self.config.evaluate.ks).items():
            for scenario, mask_N in self.groups.items():
                if mask_N.any():
                    self.add_metric(self.place(scenario, method, metric, backbone), values_N, mask_N)

    def add_metric(self, place: dict[str, str], values_N: np.ndarray, mask_N: np.ndarray) -> None:
        tables, seed = self.task.tables, self.config.seed
        told = {"dataset": tables.name, "split": "test", "seed": seed, "protocol": self.protocol()}
        self.rows.append(
            {**place, **told, "value": float(values_N[mask_N].mean()), "users": int(mask_N.sum())}
        )
        for row in np.flatnonzero(mask_N).tolist():
            user = self.task.test[row].user
            told = {"user": user, "num_interactions": int(self.count_U[user]), "value": float(values_N[row])}
            self.per_user.append({**place, **told})

    def place(self, scenario: str, method: str, metric: str, backbone: str) -> dict[str, str]:
        name = backbone or backbone_settings(self.config).model
        task = self.config.backbones.tasks[0]
        return {"task": task, "scenario": scenario, "backbone": name, "method": method, "metric": metric}

    def protocol(self) -> str:
        seen = "items seen left out" if self.config.rank.mask_seen else "items seen stay in"
        return f"full catalogue, {self.task.tables.num_items:,} items, {seen}"


def run_evaluate(run: Run[LaserConfig]) -> None:
    task = load_task(run)
    results = Results(run.config, task)
    results.add(BASE, backbone_ranks(load_backbone(run.path(BACKBONE)), task, run.config.rank.mask_seen))
    for name in run.config.baselines:
        baseline = load_backbone(baseline_folder(run, name))
        results.add(name, backbone_ranks(baseline, task, run.config.rank.mask_seen))
    for method in asked_methods(run.config):
        results.add(method.name, ranks_of(run, task, method))
    atomic_write_text(run.path("results.jsonl"), "".join(json.dumps(row) + "\n" for row in results.rows))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(results.per_user), buffer)
    atomic_write_bytes(run.path("per_user.parquet"), buffer.getvalue())
    told = counts(run)
    atomic_write_json(run.path("parameters.json"), told)
    for name, count in told.items():
        print(f"trainable parameters, {name}: {count:,}", flush=True)


def backbone_ranks(backbone: Backbone, task: Task, mask_seen: bool) -> np.ndarray:
    """1-based ranks (N,) of a conventional recommender, which sees the whole history."""
    users_N = np.array([example.user for example in task.test])
    histories = [example.history for example in task.test]
    targets_N = np.array([example.target for example in task.test])
    nothing = np.empty(0, dtype=np.int64)
    seen = [
        example.history[example.history != example.target] if mask_seen else nothing for example in task.test
    ]
    return target_ranks(backbone, users_N, histories, seen, targets_N)


def ranks_of(run: Run[LaserConfig], task: Task, method: Method) -> np.ndarray:
    """Raises UserError for rankings of other users or targets."""
    table = pq.read_table(ranking_path(run, method))
    asked = [(example.user, example.target) for example in task.test]
    if list(zip(table["user"].to_pylist(), table["target"].to_pylist(), strict=True)) != asked:
        raise UserError("rank: its rankings are of other users: run it again (--from rank).")
    ranks_N: np.ndarray = table["rank"].to_numpy().astype(np.float64)
    return ranks_N


def best_epoch(run: Run[LaserConfig], method: Method) -> int:
    return int(read_manifest(final_folder(run, method))["epoch"])
