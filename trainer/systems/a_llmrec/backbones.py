"""Stage backbone: the conventional recommender that stays frozen, and its vectors.

Shapes: N histories, B of a chunk, D width, C candidates, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recloom.data_shards.candidates import NO_ITEM
from recloom.data_shards.errors import UserError
from recloom.trainer.collaborative.base import Backbone, BackboneSettings
from recloom.trainer.collaborative.data import TopKData, pad_histories
from recloom.trainer.collaborative.fit import fit
from recloom.trainer.collaborative.registry import backbone_module, load_backbone, save_backbone
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec.prepare import load_task
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig

FOLDER = "backbone"
CHUNK = 256


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


@torch.no_grad()
def user_states(backbone: Backbone, users_N: np.ndarray, histories: Sequence[np.ndarray]) -> Tensor:
    """x_u of section 4.1.2 for each history, (N, D): what the backbone makes of the user behind it."""
    parts = [torch.empty(0, backbone.item_vectors().shape[1])]
    for start in range(0, len(users_N), CHUNK):
        rows = slice(start, start + CHUNK)
        padded_BL = pad_histories(histories[rows], backbone.history_length, backbone.num_items)
        parts.append(backbone.user_vectors(torch.as_tensor(users_N[rows]).long(), padded_BL))
    return torch.cat(parts)


@torch.no_grad()
def candidate_scores(
    backbone: Backbone, users_N: np.ndarray, histories: Sequence[np.ndarray], items_NC: np.ndarray
) -> np.ndarray:
    """The backbone's scores of every user's candidates, (N, C); -inf for NO_ITEM."""
    scores_NC = np.full(items_NC.shape, -np.inf)
    for start in range(0, len(users_N), CHUNK):
        rows = slice(start, start + CHUNK)
        padded_BL = pad_histories(histories[rows], backbone.history_length, backbone.num_items)
        scores_BI = backbone.score(torch.as_tensor(users_N[rows]).long(), padded_BL).numpy()
        scores_NC[rows] = np.take_along_axis(scores_BI, items_NC[rows].clip(min=0), axis=1)
    return np.where(items_NC == NO_ITEM, -np.inf, scores_NC)
