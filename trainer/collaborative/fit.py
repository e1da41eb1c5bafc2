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
from torch import Tensor
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

    best_epoch counts from 1. curve: (epoch, mean training loss, validation value) of each validation. A
    backbone without parameters has one validation, at epoch 0 with loss 0.
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
    to validate on, or the training diverges.
    """
    check_validation(data, settings)
    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = backbone_class(module).build(data, settings)
        if any(True for _ in backbone.parameters()):
            best, curve = train(backbone, data, rng, progress)
        else:
            best, curve = validate_once(backbone, data, progress)
    seconds = time.perf_counter() - start
    return backbone.eval(), FitResult(best.metric, best.epoch, best.value, curve, seconds)


class Best:
    """The best validation so far, with its weights."""

    def __init__(self, data: TopKData | RatingData) -> None:
        self.metric, self.sign = ("RMSE", -1) if isinstance(data, RatingData) else ("N@10", 1)
        self.epoch, self.value = 0, -self.sign * math.inf
        self.state: dict[str, Tensor] = {}

    def update(self, epoch: int, value: float, backbone: Backbone) -> None:
        if self.sign * value > self.sign * self.value:
            self.epoch, self.value = epoch, value
            self.state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}


def train(
    backbone: Backbone, data: TopKData | RatingData, rng: np.random.Generator, progress: Progress
) -> tuple[Best, list[tuple[int, float, float]]]:
    """All epochs; leaves the weights of the best validation in `backbone`, returns it and the curve."""
    settings, optimizer, best = backbone.settings, backbone.optimizer(), Best(data)
    curve: list[tuple[int, float, float]] = []
    hidden = None if progress is True else True
    with tqdm(total=settings.max_epochs, desc=settings.model, unit="epoch", disable=hidden) as bar:
        for epoch in range(1, settings.max_epochs + 1):
            loss = train_epoch(backbone, optimizer, data, rng)
            bar.update()
            if epoch % settings.evaluate_every and epoch < settings.max_epochs:
                continue
            value = validation_value(backbone, data)
            curve.append((epoch, loss, value))
            best.update(epoch, value, backbone)
            bar.set_postfix_str(f"{best.metric} {value:.4f}, best {best.value:.4f} at {best.epoch}")
            if callable(progress):
                progress(epoch, settings.max_epochs, value)
            if epoch - best.epoch >= settings.patience:
                break
    backbone.load_state_dict(best.state)
    return best, curve


def validate_once(
    backbone: Backbone, data: TopKData | RatingData, progress: Progress
) -> tuple[Best, list[tuple[int, float, float]]]:
    """What `train` gives, for a backbone in which nothing can be trained."""
    best = Best(data)
    best.update(0, validation_value(backbone, data), backbone)
    if callable(progress):
        progress(0, backbone.settings.max_epochs, best.value)
    return best, [(0, 0.0, best.value)]


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
    if not losses:
        raise UserError(
            f"{backbone.settings.model}: the training data give no example to learn from: "
            "use users with more interactions."
        )
    if not np.isfinite(losses).all():
        raise diverged(backbone)
    return float(np.mean(losses))


def diverged(backbone: Backbone) -> UserError:
    return UserError(
        f"{backbone.settings.model}: the training diverged, losses or predictions are not finite: "
        f"lower learning_rate (now {backbone.settings.learning_rate})."
    )


def validation_value(backbone: Backbone, data: TopKData | RatingData) -> float:
    """RMSE of the validation ratings, or NDCG@10 over the full catalogue without seen items."""
    if isinstance(data, RatingData):
        predicted_N = predict_ratings(backbone, data.valid.user_N, data.valid.item_N)
        if not np.isfinite(predicted_N).all():
            raise diverged(backbone)
        return metrics.rmse(predicted_N, data.valid.rating_N)
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
