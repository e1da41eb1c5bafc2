"""YAML and command-line overrides into a RunConfig; all errors at once, for people."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from recloom.data_shards.errors import UserError
from recloom.trainer.config import RunConfig, schema_for


class ConfigError(UserError):
    """Every problem of a config, one sentence a line."""


def read_config(path: Path, overrides: list[tuple[str, str]] | None = None) -> RunConfig:
    """Read a YAML, apply `--a.b value` overrides, check everything.

    Raises ConfigError with one sentence a mistake: field, value, rule, remedy.
    """
    raw = read_yaml(path)
    for dotted, text in overrides or []:
        set_value(raw, dotted, text)
    return build_config(raw, str(path))


def build_config(raw: dict[str, Any], origin: str) -> RunConfig:
    schema = schema_for(raw)
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        sentences = [sentence(problem, schema) for problem in error.errors()]
        raise ConfigError("\n".join(f"{origin}: {text}" for text in sentences)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f" Did you mean '{path.parent / near[0]}'?" if near else ""
        raise ConfigError(f"{path}: no such config file: name a YAML such as configs/llama4rec_quickstart.yaml.{hint}")
    try:
        raw = yaml.load(path.read_text(), Loader=UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: the file holds no settings: start from a file in configs/.")
    return raw


class UniqueKeyLoader(yaml.SafeLoader):
    """A key given twice is an error: the second would silently win. `2e-5` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def set_value(raw: dict[str, Any], dotted: str, text: str) -> None:
    """Apply one override; the text is read as a YAML value ('true', '3', '[1, 2]', 'null')."""
    *parents, last = dotted.split(".")
    block = raw
    for name in parents:
        value = block.setdefault(name, {})
        if not isinstance(value, dict):
            raise ConfigError(f"--{dotted}: '{name}' is a single value, not a block: shorten the name.")
        block = value
    block[last] = yaml.safe_load(text)


def sentence(problem: Any, schema: type[BaseModel]) -> str:
    """One pydantic error as field, value, rule, remedy."""
    loc = [str(part) for part in problem["loc"]]
    field = ".".join(loc) or "config"
    value = problem["input"]
    kind = problem["type"]
    if kind == "extra_forbidden":
        known = known_keys(schema, loc[:-1])
        hint = suggestion(loc[-1], known) or f"known here: {', '.join(sorted(known))}"
        return f"{field}: unknown setting; {hint}."
    if kind == "missing":
        return f"{field}: required and not given; add it to the YAML."
    if kind == "literal_error":
        options = literal_options(problem)
        hint = suggestion(str(value), options) or f"choose one of: {', '.join(options)}"
        return f"{field} = {value!r}: not one of the known values; {hint}."
    if kind == "value_error":
        text = str(problem["ctx"]["error"])
        return f"{text}." if field == "config" else f"{field}: {text}."
    rule = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{field} = {value!r}: {rule}."


def suggestion(given: str, known: list[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else ""


def literal_options(problem: Any) -> list[str]:
    expected = problem["ctx"]["expected"].replace(" or ", ", ")
    return [part.strip().strip("'") for part in expected.split(",")]


def known_keys(schema: type[BaseModel], loc: list[str]) -> list[str]:
    """The field names of the block at `loc`."""
    block: Any = schema
    for name in loc:
        field = getattr(block, "model_fields", {}).get(name)
        if field is None:
            return []
        block = model_in(field.annotation)
    return list(getattr(block, "model_fields", {}))


def model_in(annotation: Any) -> Any:
    """The pydantic model inside an annotation such as `TableFile | None`."""
    if isinstance(annotation, type):
        return annotation
    return next((a for a in get_args(annotation) if hasattr(a, "model_fields")), None)


def config_dict(config: BaseModel) -> dict[str, Any]:
    """The resolved settings as plain values."""
    return config.model_dump(mode="json")


def dump_config(config: RunConfig) -> str:
    return yaml.safe_dump(config_dict(config), sort_keys=False, allow_unicode=True)


def digest(value: Any) -> str:
    """A short stable hash of JSON-able values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
