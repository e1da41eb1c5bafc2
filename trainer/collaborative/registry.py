"""Find a backbone by its file's name, and save and load fitted ones.

A backbone is a file of this folder that sets `TASK`, a class `Settings` and one subclass of
`Backbone`. There is no list to extend.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import re
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
from recloom.trainer.collaborative.base import Backbone, BackboneSettings

FOLDER = Path(__file__).parent
WEIGHTS, DESCRIPTION = "backbone.safetensors", "backbone.json"


def backbone_names(task: str | None = None) -> list[str]:
    """The names of all backbones, or of one task's ("direct", "sequential", "rating"), sorted."""
    names = [p.stem for p in FOLDER.glob("*.py") if re.search(r"^TASK\b.*=", p.read_text(), re.MULTILINE)]
    return sorted(name for name in names if task is None or backbone_module(name).TASK == task)


def backbone_module(name: str) -> ModuleType:
    """The module of a backbone. Raises UserError that lists the names when there is none like it."""
    names = backbone_names()
    if name not in names:
        near = difflib.get_close_matches(name.lower().replace("-", ""), names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(names)}."
        raise UserError(f"backbone '{name}': no file of that name in trainer/collaborative/: {hint}")
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
