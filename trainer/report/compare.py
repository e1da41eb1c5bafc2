"""Measurements beside the figures of the paper, table by table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from recloom.trainer.report.read import RunRecord
from recloom.trainer.report.results import (
    BASELINE,
    LOWER_IS_BETTER,
    Group,
    group_results,
)
from recloom.trainer.report.tables import aligned
from recloom.trainer.report.users import user_values
from recloom.trainer.significance import LEVEL, PairedTest, paired_t_test

FOLDER = Path(__file__).parent / "paper"
OURS = "Llama4Rec"
RIVALS = (BASELINE, "IFT")  # what the paper compares with
PER_USER = {"RMSE": "SE", "MAE": "AE"}  # a metric's value of one user, where it has another name
NOTE = (
    "Here, mean ± standard deviation over seeds (paper). * better than the best of Base and IFT, paired "
    f"t-test over users, p <= {LEVEL:g}; the paper's stars are left out."
)


@dataclass(frozen=True)
class Measured:
    """One data set, task and backbone of a run; name: the run's."""

    name: str
    group: Group
    per_user: pa.Table


@dataclass(frozen=True)
class PaperTable:
    """figures: by data set, backbone and method, one value a metric."""

    table: str
    task: str
    metrics: tuple[str, ...]
    figures: dict[str, dict[str, dict[str, list[float]]]]


@lru_cache
def paper_tables(system: str) -> tuple[PaperTable, ...]:
    """The tables of a system's paper; none where no file is kept."""
    path = FOLDER / f"{system}.yaml"
    rows: list[dict[str, Any]] = yaml.safe_load(path.read_text()) if path.is_file() else []
    return tuple(PaperTable(r["table"], r["task"], tuple(r["metrics"]), r["data"]) for r in rows)


def comparison(records: Sequence[RunRecord], markdown: bool = False) -> str:
    """One block a table of the paper and data set that was measured; empty where the paper has none."""
    blocks = []
    for system in dict.fromkeys(record.config["system"] for record in records):
        own = [record for record in records if record.config["system"] == system]
        measured = [
            Measured(r.config["name"], group, r.per_user) for r in own for group in group_results(r.rows)
        ]
        for table in paper_tables(system):
            blocks += list(table_blocks(table, measured, markdown))
    return "\n\n".join([*blocks, NOTE]) if blocks else ""


def table_blocks(table: PaperTable, measured: Sequence[Measured], markdown: bool) -> Iterator[str]:
    for dataset, backbones in table.figures.items():
        found = [
            item
            for backbone in backbones
            for item in measured
            if (item.group.dataset, item.group.task, item.group.backbone) == (dataset, table.task, backbone)
            and (set(backbones[backbone]) <= {BASELINE, "IFT", OURS} or has_ablation(item.group))
        ]
        if not found:
            continue
        head = [f"{table.table}, {dataset}", "", *table.metrics]
        names = Counter(item.group.backbone for item in found)
        lines = [
            [
                item.group.backbone
                if names[item.group.backbone] == 1
                else f"{item.group.backbone}, {item.name}",
                *line,
            ]
            for item in found
            for line in method_lines(table, item)
        ]
        yield rendered(head, lines, markdown)


def has_ablation(group: Group) -> bool:
    return any(method.startswith("w/o") for method in group.methods)


def method_lines(table: PaperTable, item: Measured) -> Iterator[list[str]]:
    """A line a method: its name, then here (paper) by metric; the last is the gain over the best rival."""
    group = item.group
    figures = table.figures[group.dataset][group.backbone]
    methods = [m for m in group.methods if m in figures or not m.startswith("w/o")]
    tests = {metric: against_best(item, metric) for metric in table.metrics}
    for method in methods:
        cells = []
        for place, metric in enumerate(table.metrics):
            value = group.values.get((method, metric))
            star = "*" if method == OURS and is_gain(tests[metric], metric) else ""
            paper = f"{figures[method][place]:.4f}" if method in figures else "-"
            cells.append(f"{'-' if value is None else value}{star} ({paper})")
        yield [method, *cells]
    gains = [(gain(group, metric), paper_gain(figures, table.metrics, metric)) for metric in table.metrics]
    yield ["improvement", *(f"{percent(here)} ({percent(paper)})" for here, paper in gains)]


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f} %"


def relative_gain(ours: float, rivals: Sequence[float], metric: str) -> float:
    """Share by which `ours` is better than the best rival (negative: worse)."""
    if metric in LOWER_IS_BETTER:
        return (min(rivals) - ours) / min(rivals)
    return (ours - max(rivals)) / max(rivals)


def gain(group: Group, metric: str) -> float | None:
    values = {method: group.values[method, metric].mean for method, name in group.values if name == metric}
    rivals = [values[name] for name in RIVALS if name in values]
    if OURS not in values or not rivals or not all(rivals):
        return None
    return relative_gain(values[OURS], rivals, metric)


def paper_gain(figures: dict[str, list[float]], metrics: Sequence[str], metric: str) -> float:
    place = metrics.index(metric)
    return relative_gain(figures[OURS][place], [figures[name][place] for name in RIVALS], metric)


def against_best(item: Measured, metric: str) -> PairedTest | None:
    """Llama4Rec against the better of Base and IFT, paired by user (values averaged over seeds)."""
    values = user_values(item.per_user, item.group, PER_USER.get(metric, metric))
    if values is None or OURS not in values.values_U or values.num_users < 2:
        return None
    rivals = {name: values.values_U[name] for name in RIVALS if name in values.values_U}
    if not rivals:
        return None
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = max(rivals, key=lambda name: sign * rivals[name].mean())
    return paired_t_test(values.values_U[OURS], rivals[best])


def is_gain(test: PairedTest | None, metric: str) -> bool:
    return test is not None and test.star and (test.difference < 0) == (metric in LOWER_IS_BETTER)


def rendered(head: list[str], lines: list[list[str]], markdown: bool) -> str:
    if not markdown:
        shown = [[head[0], *head[2:]]]
        for previous, line in zip([None, *lines], lines, strict=False):
            if previous is None or previous[0] != line[0]:
                shown.append([line[0]])
            shown.append([f"  {line[1]}", *line[2:]])
        return aligned(shown)
    rows = [[head[0], "method", *head[2:]], ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
