"""Stages backbone and backbone_again: the conventional models.

base       fitted on the training part: what is evaluated and re-ranked.
inner      fitted without each user's latest `holdback` training items: only this one speaks in
           training prompts, so that no prediction placed there has seen the prompt's target.
augmented  fitted on the training part plus what the LLM made (section 4.2).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from recloom.data_shards.errors import UserError
from recloom.data_shards.splits import Interactions, Split, Splits
from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.data import RatingData, TopKData
from recloom.trainer.collaborative.fit import fit
from recloom.trainer.collaborative.registry import backbone_module, load_backbone, save_backbone
from recloom.trainer.preparation import load_data
from recloom.trainer.stages import Run
from recloom.trainer.systems.llama4rec.augmented_data import (
    augmented_tables,
    augmented_tasks,
    augmented_topk,
)
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig

Kind = Literal["base", "inner", "augmented"]


def task_split(splits: Splits, task: str) -> Split:
    return splits.rating if task == "rating" else splits.topk


def held_back_mask(rows: Interactions, holdback: int) -> np.ndarray:
    """True for each user's latest `holdback` training rows, at most half of the user's rows."""
    count_U = np.bincount(rows.user_N) if len(rows) else np.zeros(0, dtype=np.int64)
    held_U = np.minimum(holdback, count_U // 2)
    end_U = np.cumsum(count_U)
    from_end_N = end_U[rows.user_N] - 1 - np.arange(len(rows))
    return from_end_N < held_U[rows.user_N]


def inner_split(split: Split, holdback: int) -> Split:
    """The split that the cross-fitted backbone sees; validation rows only stop its training."""
    return replace(split, train=split.train.select(~held_back_mask(split.train, holdback)))


def make_data(tables: Tables, split: Split, task: str) -> TopKData | RatingData:
    if task == "rating":
        return RatingData.from_split(tables, split)
    return TopKData.from_split(split, tables.num_users, tables.num_items)


def fit_one(run: Run[Llama4RecConfig], kind: Kind, task: str, data: TopKData | RatingData) -> None:
    """Fit and save one backbone; one saved by an interrupted start is kept."""
    folder = run.path(f"backbones/{kind}/{task}")
    try:
        load_backbone(folder)
        return
    except UserError:
        pass
    settings = getattr(run.config.backbones, task)
    backbone, result = fit(backbone_module(settings.model), data, settings, run.config.seed)
    save_backbone(
        backbone,
        settings,
        folder,
        kind=kind,
        task=task,
        metric=result.metric,
        best_epoch=result.best_epoch,
        best_value=result.best_value,
        curve=result.curve,
    )
    print(
        f"backbone {settings.model} ({task}, {kind}): validation {result.metric} {result.best_value:.4f} "
        f"at epoch {result.best_epoch}, {result.seconds:.0f} s",
        flush=True,
    )


def run_backbones(run: Run[Llama4RecConfig]) -> None:
    tables, splits = load_data(run)
    for task in run.config.backbones.tasks:
        split = task_split(splits, task)
        fit_one(run, "base", task, make_data(tables, split, task))
        inner = inner_split(split, run.config.instructions.holdback)
        fit_one(run, "inner", task, make_data(tables, inner, task))


def run_backbones_again(run: Run[Llama4RecConfig]) -> None:
    """The backbones with what the LLM made: pairs, inserted items, item attributes."""
    tables, splits = load_data(run)
    run.path("backbones/augmented").mkdir(parents=True, exist_ok=True)
    for task in augmented_tasks(run.config):
        if task == "rating":
            data: TopKData | RatingData = RatingData.from_split(augmented_tables(run, tables), splits.rating)
        else:
            plain = TopKData.from_split(splits.topk, tables.num_users, tables.num_items)
            data = augmented_topk(run, task, plain)
        fit_one(run, "augmented", task, data)


def has_backbone(run: Run[Llama4RecConfig], kind: Kind, task: str) -> bool:
    return run.path(f"backbones/{kind}/{task}").is_dir()


def open_backbone(run: Run[Llama4RecConfig], kind: Kind, task: str) -> Backbone:
    """A fitted backbone; where a task has no augmentation the base one serves."""
    known = kind if kind != "augmented" or has_backbone(run, kind, task) else "base"
    return load_backbone(run.path(f"backbones/{known}/{task}"))
