"""A config by way of YAML text, and what is said of one that is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import yaml

from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import ConfigError, build_config, parse_yaml

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def read_as(kind: type[ConfigT], raw: dict[str, Any]) -> ConfigT:
    config = build_config(parse_yaml(yaml.safe_dump(raw)), "test")
    assert isinstance(config, kind)
    return config


def sentences(read: Callable[[], RunConfig]) -> list[str]:
    """Those of the refusal, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        read()
    lines = str(caught.value).split("\n")
    assert all(line.endswith((".", "?")) and not line.endswith("..") for line in lines), lines
    return [line.removeprefix("test: ") for line in lines]
