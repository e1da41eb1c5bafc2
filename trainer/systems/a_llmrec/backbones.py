"""Stage backbone: the conventional recommender that stays frozen, and its scores.

Shapes: N users, B of a chunk, C candidates, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recloom.data_shards.candidates import NO_ITEM
from recloom.trainer.collaborative.base import Backbone, BackboneSettings
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.evaluate import masked_scores
from recloom.trainer.collaborative.saved import fit_or_keep, input_files
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec.prepare import load_task
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig

FOLDER = "backbone"


def backbone_settings(config: ALLMRecConfig) -> BackboneSettings:
    """The one backbone of the config."""
    settings: BackboneSettings = getattr(config.backbones, config.backbones.tasks[0])
    return settings


def backbone_files(config: ALLMRecConfig) -> list[Path]:
    """The files that the backbone itself reads: vectors of a user's own."""
    return input_files(backbone_settings(config))


def run_backbone(run: Run[ALLMRecConfig]) -> None:
    """Fit the backbone on what the scenario learns from."""
    task = load_task(run)
    data = TopKData.from_split(
        task.scenario.splits.topk, task.tables.num_users, task.tables.num_items, task.tables
    )
    fit_or_keep(run.path(FOLDER), data, backbone_settings(run.config), run.config.seed)


def candidate_scores(
    backbone: Backbone, users_N: np.ndarray, histories: Sequence[np.ndarray], items_NC: np.ndarray
) -> np.ndarray:
    """The backbone's scores of every user's candidates, (N, C); -inf for NO_ITEM."""
    scores_NC = np.full(items_NC.shape, -np.inf)
    nothing = [np.empty(0, dtype=np.int64)] * len(users_N)
    for rows, scores_BI in masked_scores(backbone, users_N, histories, nothing):
        scores_NC[rows] = np.take_along_axis(scores_BI.numpy(), items_NC[rows].clip(min=0), axis=1)
    return np.where(items_NC == NO_ITEM, -np.inf, scores_NC)
