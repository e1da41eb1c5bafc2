"""Finds the data sources: every file of this folder that defines `Settings` and `load`."""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from recloom.data_shards.errors import UserError

CONTRACT = {"Settings", "load"}


def source_names() -> list[str]:
    """The sources' names in alphabetical order; no source is imported to find out."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if is_source(path))


def is_source(path: Path) -> bool:
    body = ast.parse(path.read_bytes()).body
    return {node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))} >= CONTRACT


def source_module(name: str) -> ModuleType:
    """The module of one source; raises UserError with the nearest name when there is none."""
    names = source_names()
    if name not in names:
        choices = ", ".join(names)
        raise UserError(
            f"data.source is {name!r}, no such source{did_you_mean(name, names)}: choose from {choices}."
        )
    return importlib.import_module(f"recloom.data_shards.sources.{name}")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """', did you mean X' for the nearest choice, empty when none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower(), list(by_lower), n=1)
    return f", did you mean {by_lower[near[0]]!r}" if near else ""
