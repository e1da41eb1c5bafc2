"""Read what the stages left in a run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from recloom.data_shards.errors import UserError
from recloom.data_shards.scenarios import OVERALL
from recloom.trainer.report.results import Row
from recloom.trainer.report.system_view import SystemView, view_of

RESULT_FIELDS: dict[str, type | tuple[type, ...]] = {
    "dataset": str,
    "task": str,
    "scenario": str,
    "split": str,
    "backbone": str,
    "method": str,
    "metric": str,
    "value": (int, float),
    "seed": int,
    "users": int,
    "protocol": str,
}
REPORT_STAGE = "report"  # its own time is not known while it writes


@dataclass(frozen=True)
class RunRecord:
    """A run folder in memory.

    Attributes:
        config_text: config.yaml as written; config: the same, parsed.
        rows: results.jsonl. per_user: per_user.parquet. aggregate: aggregate.json. times: times.json.
        parameters: parameters.json.
        curves: the rows of tune/NAME/metrics.jsonl by NAME.
        alignment: the rows of align/metrics.jsonl. genres: those of genres.jsonl.
        stages: the markers in stages/, longest first.

    What the system does not write, or need not have written, is empty.
    """

    config_text: str
    config: dict[str, Any]
    environment: dict[str, Any]
    card: dict[str, Any]
    rows: list[Row]
    per_user: pa.Table
    aggregate: dict[str, Any]
    times: dict[str, Any]
    parameters: dict[str, int]
    curves: dict[str, list[Row]]
    alignment: list[Row]
    genres: list[Row]
    stages: list[Row]

    @property
    def view(self) -> SystemView:
        return view_of(self.config["system"])


def read_run(folder: Path) -> RunRecord:
    """A run, or the seeds of one joined: measurements of all, curves, weights and times of the first.

    Raises UserError that names the first missing or damaged file and the stage that writes it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder: name a folder that `recloom run CONFIG` has filled.")
    seeds = [read_one(path.parent) for path in sorted(folder.glob("seed_*/results.jsonl"))]
    if not seeds:
        return read_one(folder)
    config_text = existing(folder / "config.yaml", None).read_text()
    return replace(
        seeds[0],
        config_text=config_text,
        config=yaml.safe_load(config_text),
        rows=[row for record in seeds for row in record.rows],
        per_user=pa.concat_tables([record.per_user for record in seeds], promote_options="default"),
    )


def read_one(folder: Path) -> RunRecord:
    config_text = existing(folder / "config.yaml", None).read_text()
    config = yaml.safe_load(config_text)
    files = RunFiles(folder, view_of(config["system"]))
    return RunRecord(
        config_text=config_text,
        config=config,
        environment=read_json(folder / "env.json", None),
        card=read_json(folder / "data" / "card.json", "prepare"),
        rows=read_results(folder / "results.jsonl", files.stage("results.jsonl")),
        per_user=read_users(folder / "per_user.parquet", files.stage("per_user.parquet")),
        aggregate=files.json("aggregate.json"),
        times=files.json("times.json"),
        parameters=files.json("parameters.json"),
        curves={} if config["model"].get("tuned") else files.curves("tune"),
        alignment=files.lines("align/metrics.jsonl"),
        genres=files.lines("genres.jsonl"),
        stages=read_stages(folder / "stages"),
    )


@dataclass(frozen=True)
class RunFiles:
    """Files of a run folder that its system needs, may leave, or does not know: these are empty."""

    folder: Path
    view: SystemView

    def stage(self, name: str) -> str | None:
        return self.view.needed.get(name)

    def is_read(self, name: str) -> bool:
        there = name in self.view.optional and (self.folder / name).exists()
        return there or name in self.view.needed

    def json(self, name: str) -> dict[str, Any]:
        return read_json(self.folder / name, self.stage(name)) if self.is_read(name) else {}

    def lines(self, name: str) -> list[Row]:
        return read_lines(self.folder / name, self.stage(name)) if self.is_read(name) else []

    def curves(self, name: str) -> dict[str, list[Row]]:
        return read_curves(self.folder / name, self.stage(name)) if self.is_read(name) else {}


def remedy(stage: str | None) -> str:
    return f"run the stage `{stage}` first" if stage else "start with `recloom run CONFIG`"


def existing(path: Path, stage: str | None) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: the file is missing, the report reads it: {remedy(stage)}.")
    return path


def damaged(path: Path, stage: str | None, detail: str) -> UserError:
    return UserError(f"{path}: {detail}: delete the file and {remedy(stage).replace(' first', ' again')}.")


def read_json(path: Path, stage: str | None) -> dict[str, Any]:
    try:
        value = json.loads(existing(path, stage).read_text())
    except ValueError:
        raise damaged(path, stage, "the file is no valid JSON") from None
    if not isinstance(value, dict):
        raise damaged(path, stage, "the file holds no JSON object")
    return value


def read_lines(path: Path, stage: str | None) -> list[Row]:
    rows = []
    for number, line in enumerate(existing(path, stage).read_text().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise damaged(path, stage, f"line {number} is no valid JSON") from None
    if not rows:
        raise damaged(path, stage, "the file is empty")
    return rows


def read_results(path: Path, stage: str | None) -> list[Row]:
    """Rows that have every field of a measurement."""
    rows = read_lines(path, stage)
    for number, row in enumerate(rows, start=1):
        for field, kind in RESULT_FIELDS.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                detail = f"line {number} is no measurement, its field '{field}' is wrong"
                raise damaged(path, stage, detail)
    return rows


def read_parquet(path: Path, stage: str | None) -> pa.Table:
    try:
        return pq.read_table(existing(path, stage))
    except pa.ArrowInvalid:
        raise damaged(path, stage, "the file is no readable Parquet file") from None


def read_users(path: Path, stage: str | None) -> pa.Table:
    """Rows of users; files that Llama4Rec wrote earlier name no scenario."""
    rows = read_parquet(path, stage)
    if "scenario" in rows.column_names:
        return rows
    return rows.append_column("scenario", pa.repeat(pa.scalar(OVERALL), len(rows)))


def read_curves(folder: Path, stage: str | None) -> dict[str, list[Row]]:
    """By model; `stage` None: there need not be any."""
    paths = sorted(folder.glob("*/metrics.jsonl"))
    if not paths and stage is not None:
        raise UserError(f"{folder}: no model's metrics.jsonl is there, the report reads it: {remedy(stage)}.")
    return {path.parent.name: read_lines(path, stage) for path in paths}


def read_stages(folder: Path) -> list[Row]:
    rows = [read_json(path, None) for path in sorted(folder.glob("*.json"))]
    timed = [row for row in rows if row["stage"] != REPORT_STAGE]
    return sorted(timed, key=lambda row: (-row["seconds"], row["stage"]))
