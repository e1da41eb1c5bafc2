"""Find a backbone by its file's name, and save and load fitted ones.

A backbone is a file of this folder that sets `TASK`, a class `Settings` and one subclass of
`Backbone`. There is no list to extend.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch

from recloom.data_shards.artifacts import (
    MANIFEST,
    atomic_write_bytes,
    atomic_write_json,
    read_manifest,
    write_manifest,
)
from recloom.data_shards.errors import UserError
from recloom.data_shards.sources.registry import did_you_mean
from recloom.trainer.collaborative.base import Backbone, BackboneSettings

FOLDER = Path(__file__).parent
WEIGHTS, DESCRIPTION = "backbone.safetensors", "backbone.json"


def backbone_names(task: str | None = None) -> list[str]:
    """The names of all backbones, or of one task's ("direct", "sequential", "rating"), sorted."""
    names = sorted(path.stem for path in FOLDER.glob("*.py") if is_backbone(path))
    if task is None:
        return names
    return [name for name in names if task == backbone_module(name).TASK]


@lru_cache
def is_backbone(path: Path) -> bool:
    """True when the file sets `TASK` and defines `Settings`; it is not imported to find out."""
    body = ast.parse(path.read_bytes()).body
    defined = {node.name for node in body if isinstance(node, ast.ClassDef)}
    assigned = {ast.unparse(node.target) for node in body if isinstance(node, ast.AnnAssign)}
    assigned |= {
        ast.unparse(target) for node in body if isinstance(node, ast.Assign) for target in node.targets
    }
    return "Settings" in defined and "TASK" in assigned


def backbone_module(name: str) -> ModuleType:
    """The module of a backbone. Raises UserError that lists the names when there is none like it."""
    names = backbone_names()
    if name not in names:
        raise UserError(
            f"backbone.model is {name!r}, no such backbone{did_you_mean(name, names)}: "
            f"choose from {', '.join(names)}."
        )
    return importlib.import_module(f"recloom.trainer.collaborative.{name}")


def backbone_class(module: ModuleType) -> type[Backbone]:
    """The one concrete Backbone class that `module` itself defines."""
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Backbone) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise TypeError(f"{module.__name__} must define exactly one Backbone class, it has {len(classes)}.")
    return classes[0]


def save_backbone(backbone: Backbone, settings: BackboneSettings, folder: Path, **fields: Any) -> None:
    """Write weights, settings and sizes below `folder`, the manifest (with `fields`) last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    state = {name: value.detach().contiguous() for name, value in backbone.state_dict().items()}
    atomic_write_bytes(folder / WEIGHTS, safetensors.torch.save(state))
    atomic_write_json(folder / DESCRIPTION, {"settings": settings.model_dump(), "sizes": backbone.sizes})
    write_manifest(folder, **fields)


def load_backbone(folder: Path) -> Backbone:
    """The saved backbone, in evaluation mode; its scores equal the saved one's bit for bit.

    Raises UserError when the folder is incomplete or damaged.
    """
    read_manifest(folder, verify=True)
    description = json.loads((folder / DESCRIPTION).read_text())
    module = backbone_module(description["settings"]["model"])
    backbone = backbone_class(module)(module.Settings(**description["settings"]), description["sizes"])
    backbone.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    return backbone.eval()
