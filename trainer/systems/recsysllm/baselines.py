"""Stage backbones: conventional recommenders on the same rows, to be compared with.

Shapes: N questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recloom.data_shards.splits import Splits
from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.data import RatingData, TopKData, leave_one_out_queries
from recloom.trainer.collaborative.evaluate import predict_ratings, target_ranks
from recloom.trainer.collaborative.registry import load_backbone
from recloom.trainer.collaborative.saved import fit_or_keep
from recloom.trainer.preparation import load_data
from recloom.trainer.stages import Run
from recloom.trainer.systems.recsysllm.settings import RecSysLLMConfig


def run_backbones(run: Run[RecSysLLMConfig]) -> None:
    """Fit those that the config names."""
    tables, splits = load_data(run)
    for task in run.config.backbones.tasks:
        settings = getattr(run.config.backbones, task)
        fit_or_keep(run.path(f"backbones/{task}"), data_of(task, tables, splits), settings, run.config.seed)


def data_of(task: str, tables: Tables, splits: Splits) -> TopKData | RatingData:
    if task == "rating":
        return RatingData.from_split(tables, splits.rating)
    return TopKData.from_split(splits.topk, tables.num_users, tables.num_items, tables)


def ranks_of(
    run: Run[RecSysLLMConfig], task: str, metas: Sequence[Mapping[str, Any]], among: bool
) -> np.ndarray:
    """1-based ranks (N,) of the questions' answers: in the catalogue, or among each question's items."""
    tables, splits = load_data(run)
    queries = leave_one_out_queries(splits.topk, tables.num_users, "test")
    row_of = {int(user): row for row, user in enumerate(queries.users_B)}
    rows = [row_of[meta["user"]] for meta in metas]
    everything = np.arange(tables.num_items)
    masked = [np.setdiff1d(everything, meta["items"]) if among else everything[:0] for meta in metas]
    return target_ranks(
        load_backbone(run.path(f"backbones/{task}")),
        queries.users_B[rows],
        [queries.histories[row] for row in rows],
        masked,
        np.array([meta["answer"] for meta in metas]),
    )


def ratings_of(run: Run[RecSysLLMConfig], metas: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Predicted ratings (N,), in stars."""
    users_N = np.array([meta["user"] for meta in metas])
    items_N = np.array([meta["items"][0] for meta in metas])
    return predict_ratings(load_backbone(run.path("backbones/rating")), users_N, items_N)
