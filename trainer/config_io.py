"""YAML and command-line overrides into the config class of a system; all errors at once, for people."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from recloom.data_shards.errors import UserError
from recloom.trainer.config import RunConfig
from recloom.trainer.config_errors import sentences
from recloom.trainer.config_schema import schema_for

KINDS = ("model", "source", "variant")  # what tells blocks apart whose other settings do not mix
TIMESTAMP, MERGE = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge"


class ConfigError(UserError):
    """Every problem of a config, one sentence a line."""


def read_config(
    path: Path, overrides: list[tuple[str, str]] | None = None, layers: Sequence[Path] = ()
) -> RunConfig:
    """Read a YAML, lay further ones over it, apply `--a.b value` overrides, check everything.

    Raises ConfigError with one sentence a mistake: field, value, rule, remedy.
    """
    raw = read_yaml(path)
    for layer in layers:
        raw = laid_over(raw, read_yaml(layer))
    for dotted, text in overrides or []:
        set_value(raw, dotted, text)
    return build_config(raw, str(path))


def build_config(raw: dict[str, Any], origin: str) -> RunConfig:
    schema = schema_for(raw)
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        found = sentences(raw, schema, error)
        raise ConfigError("\n".join(f"{origin}: {text}" for text in found)) from None


def read_yaml(path: Path, inside: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a YAML laid over those that its `extends` names, relative to the file.

    inside: the files that led here, to notice a circle.
    """
    if path.resolve() in inside:
        raise ConfigError(f"{path}: extends: it extends itself over {inside[-1].name}: break the circle.")
    own = read_file(path)
    bases = own.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise ConfigError(f"{path}: extends = {bases!r}: name YAML files relative to this one, in a list.")
    raw: dict[str, Any] = {}
    for name in bases:
        raw = laid_over(raw, read_yaml(path.parent / name, (*inside, path.resolve())))
    return laid_over(raw, own)


def laid_over(lower: Any, upper: Any) -> dict[str, Any]:
    """`upper` over `lower`, block by block; a block of another kind (model, source) takes the place whole."""
    merged = dict(lower)
    for name, value in upper.items():
        below = merged.get(name)
        is_block = isinstance(below, dict) and isinstance(value, dict) and same_kind(below, value)
        merged[name] = laid_over(below, value) if is_block else value
    return merged


def same_kind(lower: Any, upper: Any) -> bool:
    return all(lower.get(word, upper.get(word)) == upper.get(word, lower.get(word)) for word in KINDS)


def read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f" Did you mean '{path.parent / near[0]}'?" if near else ""
        raise ConfigError(
            f"{path}: no such config file: name a YAML such as configs/llama4rec_quickstart.yaml.{hint}"
        )
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}: mend it there.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: the file holds no settings: start from a file in configs/.")
    return raw


def parse_yaml(text: str) -> Any:
    """The plain value of a YAML text; raises ValueError with a one-line reason.

    The way through JSON copies what anchors share, so that an override changes one place only, and
    refuses what is no setting: bytes, sets, loops.
    """
    try:
        return json.loads(json.dumps(yaml.load(text, Loader=UniqueKeyLoader)))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


class UniqueKeyLoader(yaml.SafeLoader):
    """A key given twice is an error: the second would silently win. Dates stay text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise refusal(f"the key {key!r} is no name", key_node)
            if key in seen:
                raise refusal(f"the key '{key}' is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def refusal(text: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


def set_value(raw: dict[str, Any], dotted: str, text: str) -> None:
    """Apply one override; the text is read as a YAML value ('true', '3', '[1, 2]', 'null')."""
    *parents, last = dotted.split(".")
    block = raw
    for name in parents:
        if block.get(name) is None:
            block[name] = {}
        if not isinstance(block[name], dict):
            raise ConfigError(f"--{dotted}: '{name}' is a single value, not a block: shorten the name.")
        block = block[name]
    try:
        block[last] = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"--{dotted} = {text!r}: not a YAML value ({error}): put it in quotes.") from None


def config_dict(config: BaseModel) -> dict[str, Any]:
    """The resolved settings as plain values."""
    return config.model_dump(mode="json")


def dump_config(config: RunConfig) -> str:
    return yaml.safe_dump(config_dict(config), sort_keys=False, allow_unicode=True)


def digest(value: Any) -> str:
    """A short stable hash of JSON-able values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
