"""Stage backbone: the conventional recommender that stays frozen, and its scores.

Shapes: N users, B of a chunk, C candidates, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recloom.data_shards.candidates import NO_ITEM
from recloom.data_shards.errors import UserError
from recloom.trainer.collaborative.base import Backbone, BackboneSettings
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.evaluate import masked_scores
from recloom.trainer.collaborative.fit import fit
from recloom.trainer.collaborative.registry import backbone_module, load_backbone, save_backbone
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec.prepare import load_task
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig

FOLDER = "backbone"


def backbone_settings(config: ALLMRecConfig) -> BackboneSettings:
    """The one backbone of the config."""
    settings: BackboneSettings = getattr(config.backbones, config.backbones.tasks[0])
    return settings


def input_files(config: ALLMRecConfig) -> list[Path]:
    """The files that the backbone itself reads: vectors of a user's own."""
    settings = backbone_settings(config)
    read = getattr(backbone_module(settings.model), "input_files", None)
    return read(settings) if read else []


def run_backbone(run: Run[ALLMRecConfig]) -> None:
    """Fit and save the backbone; one saved by an interrupted start is kept."""
    folder = run.path(FOLDER)
    try:
        load_backbone(folder)
        return
    except UserError:
        pass
    task, settings = load_task(run), backbone_settings(run.config)
    data = TopKData.from_split(
        task.scenario.splits.topk, task.tables.num_users, task.tables.num_items, task.tables
    )
    backbone, result = fit(backbone_module(settings.model), data, settings, run.config.seed)
    told = {"metric": result.metric, "best_epoch": result.best_epoch, "best_value": result.best_value}
    save_backbone(
        backbone, settings, folder, **told, curve=result.curve, fit_seconds=round(result.seconds, 1)
    )
    print(
        f"backbone {settings.model}: validation {result.metric} {result.best_value:.4f} "
        f"at epoch {result.best_epoch}, {result.seconds:.0f} s",
        flush=True,
    )


def candidate_scores(
    backbone: Backbone, users_N: np.ndarray, histories: Sequence[np.ndarray], items_NC: np.ndarray
) -> np.ndarray:
    """The backbone's scores of every user's candidates, (N, C); -inf for NO_ITEM."""
    scores_NC = np.full(items_NC.shape, -np.inf)
    nothing = [np.empty(0, dtype=np.int64)] * len(users_N)
    for rows, scores_BI in masked_scores(backbone, users_N, histories, nothing):
        scores_NC[rows] = np.take_along_axis(scores_BI.numpy(), items_NC[rows].clip(min=0), axis=1)
    return np.where(items_NC == NO_ITEM, -np.inf, scores_NC)
