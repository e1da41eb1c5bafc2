"""The one fit loop: Adam, early stopping on the validation metric, the best weights restored.

Shapes: U users, B users with a validation item.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from recloom.data_shards.errors import UserError
from recloom.trainer import metrics
from recloom.trainer.collaborative.base import Backbone, BackboneSettings
from recloom.trainer.collaborative.data import NO_ITEM, RatingData, TopKData
from recloom.trainer.collaborative.evaluate import evaluate_topk, predict_ratings
from recloom.trainer.collaborative.registry import backbone_class

Progress = Callable[[int, int, float], None] | bool


@dataclass(frozen=True)
class FitResult:
    """metric: "N@10" (higher is better) or "RMSE" (lower is better), on validation.

    best_epoch counts from 1. curve: (epoch, mean training loss, validation value) of each validation.
    """

    metric: str
    best_epoch: int
    best_value: float
    curve: list[tuple[int, float, float]]
    seconds: float


def fit(
    module: ModuleType,
    data: TopKData | RatingData,
    settings: BackboneSettings,
    seed: int,
    progress: Progress = True,
) -> tuple[Backbone, FitResult]:
    """Fit the backbone of `module` (see registry.backbone_module) and return it in evaluation mode.

    The same data, settings, seed and thread count give the same weights, bit for bit; the caller's
    random state is left alone. progress: True shows a bar on a terminal, a function is called with
    (epoch, max_epochs, validation value) after each validation. Raises UserError when there is nothing
    to validate on, or the loss is not finite.
    """
    check_validation(data, settings)
    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = backbone_class(module).build(data, settings)
        result = train(backbone, data, rng, progress)
    return backbone.eval(), FitResult(*result, seconds=time.perf_counter() - start)


def train(
    backbone: Backbone, data: TopKData | RatingData, rng: np.random.Generator, progress: Progress
) -> tuple[str, int, float, list[tuple[int, float, float]]]:
    """The epochs; leaves the weights of the best validation in `backbone`."""
    settings = backbone.settings
    metric, sign = ("RMSE", -1) if isinstance(data, RatingData) else ("N@10", 1)
    optimizer = backbone.optimizer()
    curve: list[tuple[int, float, float]] = []
    best_epoch, best_value, best_state = 0, -sign * math.inf, {}
    bar = tqdm(
        total=settings.max_epochs, desc=settings.model, unit="epoch", disable=None if progress is True else True
    )
    for epoch in range(1, settings.max_epochs + 1):
        loss = train_epoch(backbone, optimizer, data, rng)
        bar.update()
        if epoch % settings.evaluate_every and epoch < settings.max_epochs:
            continue
        value = validation_value(backbone, data)
        curve.append((epoch, loss, value))
        if sign * value > sign * best_value:
            best_epoch, best_value, best_state = epoch, value, copy_state(backbone)
        bar.set_postfix_str(f"{metric} {value:.4f}, best {best_value:.4f} at {best_epoch}")
        if callable(progress):
            progress(epoch, settings.max_epochs, value)
        if epoch - best_epoch >= settings.patience:
            break
    bar.close()
    backbone.load_state_dict(best_state)
    return metric, best_epoch, best_value, curve


def train_epoch(
    backbone: Backbone, optimizer: torch.optim.Optimizer, data: Any, rng: np.random.Generator
) -> float:
    """One pass over the training data; returns the mean loss of its batches."""
    backbone.train()
    losses = []
    for batch in backbone.batches(data, rng):
        optimizer.zero_grad(set_to_none=True)
        loss = backbone.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not np.isfinite(losses).all():
        raise UserError(
            f"{backbone.settings.model}: the training loss is {np.mean(losses)}, not a finite number: "
            f"lower learning_rate (now {backbone.settings.learning_rate})."
        )
    return float(np.mean(losses))


def validation_value(backbone: Backbone, data: TopKData | RatingData) -> float:
    """RMSE of the validation ratings, or NDCG@10 over the full catalogue without seen items."""
    if isinstance(data, RatingData):
        valid = data.valid
        return metrics.rmse(predict_ratings(backbone, valid.user_N, valid.item_N), valid.rating_N)
    users_B = np.flatnonzero(data.valid_items != NO_ITEM)
    shown = data.sequences if data.histories is None else data.histories
    histories, seen = [shown[user] for user in users_B], [data.seen[user] for user in users_B]
    values = evaluate_topk(backbone, users_B, histories, seen, data.valid_items[users_B], ks=(10,))
    return float(values["N@10"].mean())


def check_validation(data: TopKData | RatingData, settings: BackboneSettings) -> None:
    """Early stopping needs something to look at."""
    num_valid = len(data.valid) if isinstance(data, RatingData) else (data.valid_items != NO_ITEM).sum()
    if num_valid == 0:
        raise UserError(
            f"{settings.model}: no user has a validation item, early stopping needs one: "
            "use users with at least three interactions that count."
        )


def copy_state(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in backbone.state_dict().items()}
