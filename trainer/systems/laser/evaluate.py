"""Stage evaluate: the backbone, the baselines and every method on the whole catalogue (Table 2).

Shapes: N users asked.
"""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from recloom.data_shards.artifacts import atomic_write_json
from recloom.data_shards.errors import UserError
from recloom.data_shards.scenarios import item_groups
from recloom.trainer import metrics
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.evaluate import target_ranks
from recloom.trainer.collaborative.registry import load_backbone
from recloom.trainer.results import AskedUsers, Results, everyone
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser.backbones import backbone_settings, baseline_folder
from recloom.trainer.systems.laser.methods import Method, asked_methods
from recloom.trainer.systems.laser.parameters import counts
from recloom.trainer.systems.laser.rank import ranking_path
from recloom.trainer.systems.laser.settings import LaserConfig
from recloom.trainer.systems.laser.states import BACKBONE
from recloom.trainer.systems.laser.task import Task, load_task

BASE = "Base"
GROUPS = ("warm", "cold")


def run_evaluate(run: Run[LaserConfig]) -> None:
    task = load_task(run)
    folders = {BASE: run.path(BACKBONE)}
    folders |= {name: baseline_folder(run, name) for name in run.config.baselines}
    mask_seen = run.config.rank.mask_seen
    ranks = {name: backbone_ranks(load_backbone(path), task, mask_seen) for name, path in folders.items()}
    ranks |= {method.name: ranks_of(run, task, method) for method in asked_methods(run.config)}
    results, asked = Results(task.tables.name, run.config.seed), asked_users(run.config, task)
    for name, ranks_N in ranks.items():
        results.add(asked, name, metrics.one_target_metrics(ranks_N, run.config.evaluate.ks))
    results.write(run.folder)
    told = counts(run)
    atomic_write_json(run.path("parameters.json"), told)
    for name, count in told.items():
        print(f"trainable parameters, {name}: {count:,}", flush=True)


def asked_users(config: LaserConfig, task: Task) -> AskedUsers:
    """Reported overall and by the target's popularity in training."""
    train = task.splits.topk.train
    targets_N = np.array([example.target for example in task.test])
    masks = item_groups(train, task.tables.num_items)
    seen = "items seen left out" if config.rank.mask_seen else "items seen stay in"
    return AskedUsers(
        config.backbones.tasks[0],
        backbone_settings(config).model,
        f"full catalogue, {task.tables.num_items:,} items, {seen}",
        np.array([example.user for example in task.test]),
        np.bincount(train.user_N, minlength=task.tables.num_users),
        everyone(len(targets_N)) | {name: masks[name][targets_N] for name in GROUPS},
    )


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
