"""Measurements beside the figures of the paper, table by table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from recloom.data_shards.scenarios import OVERALL
from recloom.trainer.report.bituning import validation_values
from recloom.trainer.report.costs import time_values
from recloom.trainer.report.read import RunRecord
from recloom.trainer.report.results import LOWER_IS_BETTER, Group, group_results
from recloom.trainer.report.system_view import view_of
from recloom.trainer.report.tables import aligned
from recloom.trainer.report.users import user_values
from recloom.trainer.significance import PairedTest, paired_t_test

FOLDER = Path(__file__).parent / "paper"
Figures = dict[str, list[float | None]]  # by method, one value a metric; None: not known
PER_USER = {"RMSE": "SE", "MAE": "AE"}  # a metric's value of one user, where it has another name


@dataclass(frozen=True)
class Measured:
    """One data set, task, backbone and scenario of a run; name: the run's, variant: what it switches off."""

    name: str
    variant: str
    group: Group
    per_user: pa.Table

    @property
    def label(self) -> str:
        scenario = "" if self.group.scenario == OVERALL else self.group.scenario
        return ", ".join(part for part in (self.group.backbone, scenario, self.variant) if part)


@dataclass(frozen=True)
class PaperTable:
    """Entries of one table of the paper; a table can have several, each of a scenario or a variant.

    figures: by data set and backbone.
    """

    table: str
    task: str
    metrics: tuple[str, ...]
    figures: dict[str, dict[str, Figures]]
    scenario: str = OVERALL
    variant: str = ""


@dataclass(frozen=True)
class Match:
    """What was measured, with the figures of its own cell of the paper."""

    table: PaperTable
    item: Measured

    @property
    def figures(self) -> Figures:
        return self.table.figures[self.item.group.dataset][self.item.group.backbone]

    @property
    def methods(self) -> list[str]:
        """Methods with a figure, and those that the system shows beside any table."""
        group = self.item.group
        return [m for m in group.methods if m in self.figures or m in group.view.beside]

    @property
    def is_shown(self) -> bool:
        """False without a common method, and for an ablation in a run that made none."""
        beside, measured = set(self.item.group.view.beside), set(self.item.group.methods)
        common = measured & self.figures.keys()
        return bool(common) and (self.figures.keys() <= beside or not measured <= beside)


@lru_cache
def paper_tables(system: str) -> tuple[PaperTable, ...]:
    """The tables of a system's paper; none where no file is kept."""
    path = FOLDER / f"{system}.yaml"
    rows: list[dict[str, Any]] = yaml.safe_load(path.read_text()) if path.is_file() else []
    return tuple(make_table(**row) for row in rows)


def make_table(metrics: list[str], data: dict[str, Any], **named: str) -> PaperTable:
    return PaperTable(metrics=tuple(metrics), figures=data, **named)


def comparison(records: Sequence[RunRecord], markdown: bool = False) -> str:
    """One block a table of the paper and data set that was measured; empty where the paper has none."""
    blocks: list[str] = []
    for system in dict.fromkeys(record.config["system"] for record in records):
        own = [record for record in records if record.config["system"] == system]
        found = list(system_blocks(system, [item for record in own for item in measured(record)], markdown))
        blocks += [*found, view_of(system).note] if found else []
    return "\n\n".join(blocks)


def measured(record: RunRecord) -> Iterator[Measured]:
    view = record.view
    name, variant = record.config["name"], view.variant(record.config)
    beside = time_values(record.times) | validation_values(record.curves, view)
    for group in group_results(record.rows, view):
        whole = replace(group, values=group.values | beside) if group.scenario == OVERALL else group
        yield Measured(name, variant, whole, record.per_user)


def system_blocks(system: str, items: Sequence[Measured], markdown: bool) -> Iterator[str]:
    """What earlier tables showed already (the whole system in a table of ablations) makes no block alone."""
    seen: set[tuple[int, str, str]] = set()
    for _, entries in groupby(paper_tables(system), key=lambda table: table.table):
        tables = list(entries)
        for dataset in dict.fromkeys(name for table in tables for name in table.figures):
            found = matches(tables, items, dataset)
            cells = {
                (id(m.item), name, metric) for m in found for name in m.methods for metric in m.table.metrics
            }
            if not cells <= seen:
                yield block(found, markdown)
            seen |= cells


def matches(tables: Sequence[PaperTable], items: Sequence[Measured], dataset: str) -> list[Match]:
    found = [
        Match(table, item)
        for table in tables
        for backbone in table.figures.get(dataset, {})
        for item in items
        if (item.group.dataset, item.group.backbone) == (dataset, backbone)
        and (item.group.task, item.group.scenario, item.variant)
        == (table.task, table.scenario, table.variant)
    ]
    return [match for match in found if match.is_shown]


def block(found: Sequence[Match], markdown: bool) -> str:
    """All of one table and data set; a run's name where two runs have the same cell."""
    table = found[0].table
    head = [f"{table.table}, {found[0].item.group.dataset}", "", *table.metrics]
    count = Counter(match.item.label for match in found)
    lines = [
        [label if count[label] == 1 else f"{label}, {match.item.name}", *line]
        for match in found
        for label in [match.item.label]
        for line in method_lines(match)
    ]
    return rendered(head, lines, markdown)


def method_lines(match: Match) -> Iterator[list[str]]:
    """A line a method: its name, then here (paper) by metric; the last is the gain over the best rival."""
    table, item, figures, view = match.table, match.item, match.figures, match.item.group.view
    ours = view.ours[0]
    rivals = [name for name in view.rivals if name in figures]
    tests = {metric: against_best(item, rivals, metric) for metric in table.metrics}
    for method in match.methods:
        cells = []
        for place, metric in enumerate(table.metrics):
            value = item.group.values.get((method, metric))
            star = "*" if method == ours and is_gain(tests[metric], metric) else ""
            known = figures[method][place] if method in figures else None
            paper = "-" if known is None else f"{known:.4f}"
            cells.append(f"{'-' if value is None else value}{star} ({paper})")
        yield [method, *cells]
    if ours in figures and rivals:
        gains = [
            (gain(item.group, rivals, metric), paper_gain(figures, ours, rivals, place, metric))
            for place, metric in enumerate(table.metrics)
        ]
        yield ["improvement", *(f"{percent(here)} ({percent(paper)})" for here, paper in gains)]


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f} %"


def relative_gain(ours: float, rivals: Sequence[float], metric: str) -> float:
    """Share by which `ours` is better than the best rival (negative: worse)."""
    if metric in LOWER_IS_BETTER:
        return (min(rivals) - ours) / min(rivals)
    return (ours - max(rivals)) / max(rivals)


def gain(group: Group, rivals: Sequence[str], metric: str) -> float | None:
    ours = group.view.ours[0]
    values = {method: group.values[method, metric].mean for method, name in group.values if name == metric}
    known = [values[name] for name in rivals if name in values]
    if ours not in values or not known or not all(known):
        return None
    return relative_gain(values[ours], known, metric)


def paper_gain(figures: Figures, ours: str, rivals: Sequence[str], place: int, metric: str) -> float | None:
    own, known = figures[ours][place], [figures[name][place] for name in rivals]
    others = [figure for figure in known if figure is not None]
    return relative_gain(own, others, metric) if own is not None and others else None


def against_best(item: Measured, rivals: Sequence[str], metric: str) -> PairedTest | None:
    """The system against the best rival of the table, paired by user (values averaged over seeds)."""
    ours = item.group.view.ours[0]
    values = user_values(item.per_user, item.group, PER_USER.get(metric, metric))
    if values is None or ours not in values.values_U or values.num_users < 2:
        return None
    known = {name: values.values_U[name] for name in rivals if name in values.values_U}
    if not known:
        return None
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best = max(known, key=lambda name: sign * known[name].mean())
    return paired_t_test(values.values_U[ours], known[best])


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
