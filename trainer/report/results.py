"""Rows of results.jsonl grouped as a reader compares them: one group a data set, task and backbone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recloom.data_shards.errors import UserError
from recloom.trainer.significance import mean_std

Row = dict[str, Any]

TASKS = ("direct", "sequential", "rating")
METHODS = ("Base", "Base+DA", "IFT", "w/o DA", "w/o PA", "w/o AA", "Llama4Rec")
BASELINE = "Base"
CEILING = "Ceiling"
INVALID = "invalid_rate"
LOWER_IS_BETTER = ("RMSE", "MAE", "SE", "AE")
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
        metrics, methods: in the order of the table's columns and rows.
        values: by (method, metric); a measurement that is missing has no entry.
        ceilings: by (method, metric), of the methods whose name starts with "Ceiling".
        invalid: rate of LLM answers without use, by method.
    """

    dataset: str
    task: str
    backbone: str
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
        return f"{self.task}, {self.backbone}" if self.backbone else self.task

    def is_best(self, method: str, metric: str) -> bool:
        """True for the best mean of a column that at least two methods share; equal as shown, all best."""
        column = [round(value.mean, DECIMALS) for (_, name), value in self.values.items() if name == metric]
        own = self.values.get((method, metric))
        if own is None or len(column) < 2:
            return False
        return round(own.mean, DECIMALS) == (min(column) if metric in LOWER_IS_BETTER else max(column))


def group_results(rows: Sequence[Row]) -> list[Group]:
    """The overall test measurements; raises UserError when one is there twice."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["split"] == "test" and row["scenario"] == "overall":
            found.setdefault((row["dataset"], row["task"], row["backbone"]), []).append(row)
    check_unique(found)
    keys = sorted(found, key=lambda key: (key[0], place(key[1], TASKS), key[1], key[2]))
    return [make_group(key, found[key]) for key in keys]


def check_unique(found: dict[tuple[str, str, str], list[Row]]) -> None:
    for (_, task, _), rows in found.items():
        seen = set()
        for row in rows:
            key = (row["method"], row["metric"], row["seed"])
            if key in seen:
                raise UserError(
                    f"results: {task} {key[0]} {key[1]} of seed {key[2]} is there twice, one measurement "
                    "has one row: delete results.jsonl and run the stage `aggregate` again."
                )
            seen.add(key)


def make_group(key: tuple[str, str, str], rows: list[Row]) -> Group:
    measured: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        measured.setdefault((row["method"], row["metric"]), []).append(row["value"])
    every = {pair: Value(*mean_std(values)) for pair, values in measured.items()}
    values = {pair: value for pair, value in every.items() if not is_ceiling(pair) and pair[1] != INVALID}
    return Group(
        *key,
        metrics=tuple(sorted({metric for _, metric in values}, key=metric_order)),
        methods=tuple(
            sorted({method for method, _ in values}, key=lambda name: (place(name, METHODS), name))
        ),
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


def metric_order(metric: str) -> tuple[int, int, str]:
    """H@3 N@3 H@5 N@5, then RMSE and MAE, then others by name."""
    cut = re.fullmatch(r"[A-Z]+@(\d+)", metric)
    if cut:
        return 0, int(cut[1]), metric
    return 1, place(metric, LOWER_IS_BETTER), metric
