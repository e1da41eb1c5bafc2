"""Rows of results.jsonl grouped as a reader compares them: by data set, task, backbone and scenario."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recloom.data_shards.errors import UserError
from recloom.data_shards.scenarios import FULL, OVERALL
from recloom.trainer.report.system_view import SystemView
from recloom.trainer.significance import mean_std

Row = dict[str, Any]
Key = tuple[str, str, str, str]  # data set, task, backbone, scenario

TASKS = ("direct", "sequential", "rating", "explanation", "review")
SCENARIOS = (OVERALL, "warm", "cold")
CEILING = "Ceiling"
INVALID = "invalid_rate"
TRAINING_MINUTES, QUESTION_SECONDS = "train min", "s a question"
LOWER_IS_BETTER = ("RMSE", "MAE", "SE", "AE", TRAINING_MINUTES, QUESTION_SECONDS)
DECIMALS = 4


@dataclass(frozen=True)
class Value:
    """A metric's mean and sample standard deviation over seeds; the deviation of one seed is nan."""

    mean: float
    std: float

    def __str__(self) -> str:
        mean = f"{self.mean:.{DECIMALS}f}"
        return mean if math.isnan(self.std) else f"{mean} ± {self.std:.{DECIMALS}f}"


@dataclass(frozen=True)
class Group:
    """What competes for the best value of a column.

    Attributes:
        view: how its system is shown.
        metrics, methods: in the order of the table's columns and rows.
        values: by (method, metric); a measurement that is missing has no entry.
        ceilings: by (method, metric), of the methods whose name starts with "Ceiling".
        invalid: rate of LLM answers without use, by method.
    """

    dataset: str
    task: str
    backbone: str
    scenario: str
    view: SystemView
    metrics: tuple[str, ...]
    methods: tuple[str, ...]
    values: dict[tuple[str, str], Value]
    ceilings: dict[tuple[str, str], Value]
    invalid: dict[str, Value]
    users: tuple[int, ...]
    seeds: tuple[int, ...]
    protocols: tuple[str, ...]

    @property
    def title(self) -> str:
        parts = (self.task, self.backbone, "" if self.scenario == OVERALL else self.scenario)
        return ", ".join(part for part in parts if part)

    @property
    def heading(self) -> str:
        return self.view.heading(self.task, self.scenario)

    def label(self, method: str) -> str:
        return self.view.label(method, self.backbone)

    def is_best(self, method: str, metric: str) -> bool:
        """True for the best mean of a column that at least two methods share; equal as shown, all best."""
        column = [round(value.mean, DECIMALS) for (_, name), value in self.values.items() if name == metric]
        own = self.values.get((method, metric))
        if own is None or len(column) < 2:
            return False
        return round(own.mean, DECIMALS) == (min(column) if metric in LOWER_IS_BETTER else max(column))


def group_results(rows: Sequence[Row], view: SystemView) -> list[Group]:
    """The test measurements of the scenarios that are shown; raises UserError when one is there twice."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        if row["split"] == "test" and (view.by_scenario or row["scenario"] == OVERALL):
            key = (row["dataset"], row["task"], row["backbone"], row["scenario"])
            found.setdefault(key, []).append(row)
    check_unique(found, view)
    return [make_group(key, found[key], view) for key in sorted(found, key=group_order)]


def group_order(key: Key) -> tuple[Any, ...]:
    """Sampled candidates before the full catalogue."""
    dataset, task, backbone, scenario = key
    is_full = scenario.endswith(FULL)
    bare = scenario.removesuffix(FULL)
    return dataset, place(task, TASKS), task, backbone, is_full, place(bare, SCENARIOS), scenario


def check_unique(found: dict[Key, list[Row]], view: SystemView) -> None:
    for (_, task, _, _), rows in found.items():
        seen = set()
        for row in rows:
            key = (row["method"], row["metric"], row["seed"])
            if key in seen:
                raise UserError(
                    f"results: {task} {key[0]} {key[1]} of seed {key[2]} is there twice, one measurement "
                    f"has one row: delete results.jsonl and run the stage `{view.results_stage}` again."
                )
            seen.add(key)


def make_group(key: Key, rows: list[Row], view: SystemView) -> Group:
    measured: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        measured.setdefault((row["method"], row["metric"]), []).append(row["value"])
    every = {pair: Value(*mean_std(values)) for pair, values in measured.items()}
    values = {pair: value for pair, value in every.items() if not is_ceiling(pair) and pair[1] != INVALID}
    order = tuple(view.methods)
    return Group(
        *key,
        view=view,
        metrics=tuple(sorted({metric for _, metric in values}, key=metric_order)),
        methods=tuple(sorted({method for method, _ in values}, key=lambda name: (place(name, order), name))),
        values=values,
        ceilings={pair: value for pair, value in every.items() if is_ceiling(pair)},
        invalid={method: value for (method, metric), value in every.items() if metric == INVALID},
        users=tuple(sorted({row["users"] for row in rows if row["metric"] != INVALID})),
        seeds=tuple(sorted({row["seed"] for row in rows})),
        protocols=tuple(sorted({row["protocol"] for row in rows if row["metric"] != INVALID})),
    )


def is_ceiling(pair: tuple[str, str]) -> bool:
    return pair[0].startswith(CEILING)


def place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def is_standard(metric: str) -> bool:
    """False for a metric that is one system's own."""
    return metric_order(metric)[:2] != (1, len(LOWER_IS_BETTER))


def metric_order(metric: str) -> tuple[int, int, str]:
    """H@3 N@3 H@5 N@5, then RMSE and MAE, then others by name."""
    cut = re.fullmatch(r"[A-Z]+@(\d+)", metric)
    if cut:
        return 0, int(cut[1]), metric
    return 1, place(metric, LOWER_IS_BETTER), metric
