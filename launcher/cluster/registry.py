"""The kinds of launchers: a kind is a file of this folder that has a class `Settings`. No list to extend."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent


def kind_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if "\nclass Settings(" in path.read_text())


def kind_module(kind: str) -> ModuleType:
    return importlib.import_module(f"recloom.launcher.cluster.{kind}")
