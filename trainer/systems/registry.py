"""Systems by name: a system is a folder here.

Its `settings.py` defines one config class, the schema of its YAML; its `recipe.py` lists its stages. No
system is imported before a YAML names it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from recloom.trainer.config import RunConfig

if TYPE_CHECKING:  # stages.py reads configs, and so comes here
    from recloom.trainer.stages import Stage


def system_names() -> list[str]:
    """The systems' names in alphabetical order."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/settings.py"))


def config_class(system: str) -> type[RunConfig]:
    """The config class that a system's settings.py defines."""
    module = importlib.import_module(f"recloom.trainer.systems.{system}.settings")
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    (found,) = (c for c in classes if issubclass(c, RunConfig) and c.__module__ == module.__name__)
    return found


def recipe(config: RunConfig) -> list[Stage]:
    module = importlib.import_module(f"recloom.trainer.systems.{config.system}.recipe")
    stages: list[Stage] = module.stages(config)
    return stages
