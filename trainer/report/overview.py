"""What the page shows of the results: tables, tiles, and the view of each task or scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from recloom.data_shards.scenarios import OVERALL
from recloom.trainer.report.plots import activity_plot
from recloom.trainer.report.read import RunRecord
from recloom.trainer.report.results import Group, Value
from recloom.trainer.report.system_view import BASELINE, SystemView
from recloom.trainer.report.users import (
    Bin,
    Comparison,
    UserValues,
    activity_bins,
    compare_methods,
    user_values,
)

RESULT_OF = {"AE": "MAE"}  # the mean of a per-user value, as results.jsonl calls it


@dataclass(frozen=True)
class TaskView:
    """What the page shows of one task, or of one scenario."""

    group: Group
    comparisons: list[Comparison]
    bins: list[Bin]
    metric: str
    plot: Markup | None


@dataclass(frozen=True)
class Tile:
    """A task in one glance: the system's value beside the baseline's."""

    group: Group
    metric: str
    ours: Value
    baseline: Value
    comparison: Comparison


@dataclass(frozen=True)
class ResultsTable:
    """Groups that share the columns `metrics`; label: for readers that hear the page."""

    label: str
    caption: str
    metrics: tuple[str, ...]
    groups: list[Group]


def task_view(record: RunRecord, group: Group) -> TaskView:
    values: UserValues | None = user_values(record.per_user, group)
    if values is None:
        return TaskView(group, [], [], "", None)
    # The other scenarios choose users by what they did, so that activity tells nothing more.
    bins = activity_bins(values) if values.num_users and group.scenario == OVERALL else []
    plot = activity_plot(group, values.metric, bins) if bins else None
    return TaskView(group, compare_methods(values), bins, values.metric, plot)


def tiles(view: TaskView) -> list[Tile]:
    """One tile, or none where the system or the baseline is missing."""
    metric = RESULT_OF.get(view.metric, view.metric)
    return [
        Tile(
            view.group,
            metric,
            view.group.values[item.ours, metric],
            view.group.values[BASELINE, metric],
            item,
        )
        for item in view.comparisons
        if item.baseline == BASELINE and {(item.ours, metric), (BASELINE, metric)} <= set(view.group.values)
    ]


def results_tables(groups: Sequence[Group], view: SystemView) -> list[ResultsTable]:
    """A table a scenario, or one for all groups with the same columns."""
    shown = [group for group in groups if group.metrics]
    if view.by_scenario:
        return [scenario_table(group) for group in shown]
    found: dict[tuple[str, ...], list[Group]] = {}
    for group in shown:
        found.setdefault(group.metrics, []).append(group)
    return [
        ResultsTable(
            f"Results: {', '.join(metrics)}",
            f"Test results, {' and '.join(dict.fromkeys(group.task for group in part))}",
            metrics,
            part,
        )
        for metrics, part in found.items()
    ]


def scenario_table(group: Group) -> ResultsTable:
    users = " or ".join(f"{count:,}" for count in group.users)
    caption = f"{group.heading}: {users} users; {'; '.join(group.protocols)}"
    return ResultsTable(f"Results: {group.heading}", caption, group.metrics, [group])
