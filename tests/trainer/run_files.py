"""Files of a run folder that are the same for systems whose runs tests write by hand.

Shapes: N users asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recloom.data_shards.artifacts import atomic_write_json, atomic_write_text
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import dump_config
from recloom.trainer.results import AskedUsers

NUM_USERS = 60


def asked_users(config: RunConfig, scenario: str, count: int, protocol: str) -> AskedUsers:
    """The first users, in one scenario of the only task."""
    (task,) = config.backbones.tasks
    groups, count_U = {scenario: np.ones(count, bool)}, 3 + np.arange(NUM_USERS) % 9
    backbone = getattr(config.backbones, task).model
    return AskedUsers(task, backbone, protocol, np.arange(count), count_U, groups)


def card(dataset: str, num_items: int, density: float) -> dict[str, Any]:
    return {
        "name": dataset,
        "measured": {"users": NUM_USERS, "items": num_items, "interactions": 480, "density": density},
        "average_length": 8.0,
        "tasks": {"topk": {"train": 360, "valid": NUM_USERS, "test": NUM_USERS}},
        "paper": None,
    }


def write_frame(
    folder: Path, config: RunConfig, card: Mapping[str, Any], seconds: Mapping[str, float]
) -> None:
    """What a run leaves beside its results: config, environment, card, stages."""
    atomic_write_text(folder / "config.yaml", dump_config(config))
    atomic_write_json(folder / "env.json", {"python": "3.11.2", "cpu_cores": 2, "packages": {"torch": "2"}})
    atomic_write_json(folder / "data" / "card.json", card)
    for name, time in seconds.items():
        marker = {"stage": name, "title": name, "digest": "0", "outputs": {}, "seconds": time}
        atomic_write_json(folder / "stages" / f"{name}.json", marker)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
