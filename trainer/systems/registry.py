"""Systems by name: a system is a folder here with a `recipe.py` that lists its stages."""

from __future__ import annotations

import importlib

from recloom.trainer.config import RunConfig
from recloom.trainer.stages import Stage


def recipe(config: RunConfig) -> list[Stage]:
    module = importlib.import_module(f"recloom.trainer.systems.{config.system}.recipe")
    stages: list[Stage] = module.stages(config)
    return stages
