"""`recloom ls`: the runs of a folder and how far each is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recloom.data_shards.errors import UserError
from recloom.trainer.config_io import read_config
from recloom.trainer.systems.registry import recipe

Row = tuple[str, str, str, str]


def format_runs(folder: Path) -> str:
    """One line a run: name, finished stages of all, the next stage, where it lies."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: runs appear there after `recloom run CONFIG`.")
    rows = [row for path in sorted(folder.glob("*/config.yaml")) for row in describe_runs(path.parent)]
    if not rows:
        return f"{folder}: no runs yet; start one with `recloom run configs/llama4rec_quickstart.yaml`."
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def describe_runs(folder: Path) -> list[Row]:
    """A run, or one line for each of its seeds."""
    seeds = sorted(path.parent for path in folder.glob("seed_*/config.yaml"))
    if not seeds:
        return [describe_run(folder)]
    return [(f"{folder.name} {seed.name}", *describe_run(seed)[1:]) for seed in seeds]


def describe_run(folder: Path) -> Row:
    try:
        names = [stage.name for stage in recipe(read_config(folder / "config.yaml"))]
    except UserError as error:
        return folder.name, "?", f"config.yaml can't be read: {str(error).splitlines()[0]}", str(folder)
    done = {path.stem: read_marker(path) for path in folder.glob("stages/*.json")}
    finished = [name for name in names if done.get(name)]
    seconds = sum(done[name]["seconds"] for name in finished)
    following = next((name for name in names if name not in finished), None)
    state = f"next: {following}" if following else "finished"
    return folder.name, f"{len(finished)}/{len(names)} stages, {seconds:.0f} s", state, str(folder)


def read_marker(path: Path) -> dict[str, Any]:
    try:
        marker: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        return {}
    return marker
