"""The schema of one YAML: the config class of its system, narrowed to the source and backbones it names.

Unknown names are left to pydantic, which reports them beside all other errors.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, create_model

from recloom.data_shards.sources.registry import source_module, source_names
from recloom.trainer.collaborative.registry import backbone_module, backbone_names
from recloom.trainer.config import BackbonesBlock, OpenBlock, RunConfig
from recloom.trainer.systems.registry import config_class, system_names


class OpenRunConfig(RunConfig):
    """A YAML whose system is unknown: the settings of systems can't be judged, what all share can."""

    model_config = ConfigDict(extra="allow")


def schema_for(raw: dict[str, Any]) -> type[RunConfig]:
    """The schema that fits the names in `raw`."""
    base = system_schema(raw.get("system"))
    backbones = backbones_schema(raw.get("backbones"))
    is_needed = base.model_fields["backbones"].is_required()
    return create_model(
        base.__name__,
        __base__=base,
        data=(source_schema(raw.get("data")), ...),
        backbones=(backbones, ... if is_needed else Field(default_factory=backbones)),
    )


def system_schema(name: Any) -> type[RunConfig]:
    """The config class of a system; for an unknown one a class that says which there are."""
    names = system_names()
    if name in names:
        return config_class(name)
    schema: type[RunConfig] = narrowed("RunConfig", OpenRunConfig, system=names)
    return schema


def source_schema(raw: Any) -> Any:
    """The data block's type: `source: NAME` plus the Settings of that source."""
    names = source_names()
    name = raw.get("source") if isinstance(raw, dict) else None
    base = source_module(name).Settings if name in names else OpenBlock
    return narrowed("DataBlock", base, source=names)


def backbones_schema(raw: Any) -> Any:
    """The backbones block's type: each task's Settings by the `model` it names."""
    fields: dict[str, Any] = {}
    for task in ("direct", "sequential", "rating"):
        given = raw.get(task) if isinstance(raw, dict) else None
        if given is None:
            continue
        names = backbone_names(task)
        name = given.get("model") if isinstance(given, dict) else None
        base = backbone_module(name).Settings if name in names else OpenBlock
        fields[task] = (narrowed(task, base, model=names), ...)
    return create_model("BackbonesBlock", __base__=BackbonesBlock, **fields)


def narrowed(name: str, base: Any, **choices: list[str]) -> Any:
    """`base` with a required field for each choice that takes one of the given words."""
    fields: dict[str, Any] = {field: (Literal[tuple(words)], ...) for field, words in choices.items()}
    return create_model(name, __base__=base, **fields)
