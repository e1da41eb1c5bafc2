"""`--a.b value`, `--a.b=value` and `--set a.b=value` on any command that takes a config."""

from __future__ import annotations

import argparse
from pathlib import Path

from recloom.data_shards.errors import UserError

HELP = (
    "After the config, any setting can be overridden: --training.learning_rate 1e-4, "
    "or --set training.learning_rate=1e-4."
)


def add_layers(parser: argparse.ArgumentParser) -> None:
    """`--with YAML`, as often as wanted: `layers` for `read_config`."""
    parser.add_argument(
        "--with",
        dest="layers",
        metavar="YAML",
        type=Path,
        action="append",
        default=[],
        help="settings laid over the config, such as configs/llama4rec/parts/cluster_7b.yaml; repeatable",
    )


def split_overrides(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Parse the known options; what is left must be overrides.

    Raises UserError for a left-over word that is none.
    """
    known, rest = parser.parse_known_args(arguments)
    overrides = []
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UserError(f"'{word}': neither an option nor an override: write --a.b VALUE.")
        if "=" in word:
            overrides.append(pair(word[2:].removeprefix("set="), word))
        elif not rest:
            raise UserError(f"{word}: an override needs a value: write {word} VALUE.")
        elif word == "--set":
            overrides.append(pair(rest.pop(0), word))
        else:
            overrides.append((word[2:], rest.pop(0)))
    return known, overrides


def pair(text: str, option: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise UserError(f"{option}: '{text}' is no override: write --set A.B=VALUE.")
    return name, value
