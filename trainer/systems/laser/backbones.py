"""Stages backbone and baselines: the recommender that stays frozen behind M-Former, and others beside it."""

from __future__ import annotations

from pathlib import Path

from recloom.trainer.collaborative.base import BackboneSettings
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.registry import backbone_module
from recloom.trainer.collaborative.saved import fit_or_keep, input_files
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser.settings import LaserConfig
from recloom.trainer.systems.laser.states import BACKBONE, run_states
from recloom.trainer.systems.laser.task import Task, load_task


def backbone_settings(config: LaserConfig) -> BackboneSettings:
    """The one backbone of the config."""
    settings: BackboneSettings = getattr(config.backbones, config.backbones.tasks[0])
    return settings


def backbone_files(config: LaserConfig) -> list[Path]:
    """The files that the backbone itself reads: vectors of a user's own."""
    return input_files(backbone_settings(config))


def run_backbone(run: Run[LaserConfig]) -> None:
    """Fit the backbone, and learn how its states are spread."""
    task = load_task(run)
    fit_or_keep(run.path(BACKBONE), data_of(task), backbone_settings(run.config), run.config.seed)
    run_states(run, task)


def run_baselines(run: Run[LaserConfig]) -> None:
    """Fit the others, at their defaults."""
    task = load_task(run)
    for name in run.config.baselines:
        settings = backbone_module(name).Settings(model=name)
        fit_or_keep(baseline_folder(run, name), data_of(task), settings, run.config.seed)


def baseline_folder(run: Run[LaserConfig], name: str) -> Path:
    return run.path(f"baselines/{name}")


def data_of(task: Task) -> TopKData:
    """All training interactions: a sample of users is what the LLM learns from, not the recommender."""
    tables = task.tables
    return TopKData.from_split(task.splits.topk, tables.num_users, tables.num_items, tables)
