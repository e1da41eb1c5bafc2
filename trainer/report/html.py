"""One self-contained HTML page about a run: it loads nothing, so it reads the same anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recloom.data_shards.artifacts import atomic_write_text
from recloom.data_shards.cards import PAPER_TABLE, difference, number
from recloom.trainer.report.plots import activity_plot, loss_plot
from recloom.trainer.report.read import RunRecord, read_run
from recloom.trainer.report.results import (
    BASELINE,
    INVALID,
    LOWER_IS_BETTER,
    TASKS,
    Group,
    Row,
    Value,
    group_results,
    place,
)
from recloom.trainer.report.tables import ceiling_label, direction
from recloom.trainer.report.users import (
    Bin,
    Comparison,
    UserValues,
    activity_bins,
    compare_methods,
    user_values,
)

SYSTEMS = {"llama4rec": "Llama4Rec"}
TASK_NAMES = {
    "direct": "Direct recommendation",
    "sequential": "Sequential recommendation",
    "rating": "Rating prediction",
}
MEANINGS = {
    "Base": "the conventional model (the backbone) alone",
    "Base+DA": "the backbone fitted again on data that the LLM made (data augmentation)",
    "IFT": "instruction fine-tuning: the tuned LLM, asked with plain prompts, re-ranks the backbone's "
    "candidates or predicts the rating",
    "w/o DA": "Llama4Rec without data augmentation: the backbone is the one of Base",
    "w/o PA": "Llama4Rec without prompt augmentation: the LLM is asked with plain prompts",
    "w/o AA": "Llama4Rec with one weight of the LLM for all users instead of adaptive aggregation",
    "Llama4Rec": "the backbone with augmented data and the tuned LLM with augmented prompts, combined for "
    "each user by adaptive aggregation",
}
RESULT_OF = {"AE": "MAE"}  # the mean of a per-user value, as results.jsonl calls it


@dataclass(frozen=True)
class TaskView:
    """What the page shows of one task."""

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
class WeightGrid:
    """A task's metric over the weights (Figure 3 of the paper): rows (alpha_1, cells by alpha_2).

    A cell is (validation, test or None); the choice is made by validation alone.
    """

    task: str
    metric: str
    alphas_2: list[float]
    rows: list[tuple[float, list[tuple[float, float | None]]]]


@dataclass(frozen=True)
class Training:
    """One tuned model's curve and totals."""

    name: str
    plot: Markup
    steps: int
    epochs: int
    samples: int
    tokens: int
    validation: float | None


def write_report(run_folder: Path) -> Path:
    """Write report/index.html of a run folder; returns its path.

    The same files give the same bytes. Raises UserError that names a missing or damaged file and the
    stage that writes it.
    """
    return write_page(run_folder, read_run(run_folder))


def write_page(run_folder: Path, record: RunRecord) -> Path:
    """`write_report` for a run that is read already."""
    page = run_folder / "report" / "index.html"
    atomic_write_text(page, render(record))
    return page


def render(record: RunRecord) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, duration=duration, signed=signed, task_name=task_name)
    groups = group_results(record.rows)
    views = [task_view(record, group) for group in groups]
    paper_table = record.card.get("paper_table", PAPER_TABLE)  # cards of earlier runs name none
    return environment.get_template("page.html").render(
        system=SYSTEMS.get(record.config["system"], record.config["system"]),
        model=Path(record.config["model"]["path"]).name,
        record=record,
        card=record.card,
        card_note=difference(record.card["measured"], record.card["paper"], paper_table),
        paper_table=paper_table,
        views=views,
        tables=metric_tables(groups),
        direction=direction(groups),
        lower_is_better=LOWER_IS_BETTER,
        alphas=sorted(record.aggregate.items(), key=lambda pair: place(pair[0], TASKS)),
        grids=weight_grids(record.aggregate),
        ceiling_label=ceiling_label,
        tiles=[tile for view in views for tile in tiles(view)],
        meanings={m: MEANINGS[m] for group in groups for m in group.methods if m in MEANINGS},
        seeds=sorted({seed for group in groups for seed in group.seeds}),
        invalid=invalid_rows(record.rows, groups),
        reachable_only=record.config.get("rank", {}).get("reachable_only", False),
        trainings=[training(name, rows) for name, rows in record.curves.items()],
        total_seconds=sum(row["seconds"] for row in record.stages),
        environment_rows=flat(record.environment),
    )


def task_view(record: RunRecord, group: Group) -> TaskView:
    values: UserValues | None = user_values(record.per_user, group)
    if values is None:
        return TaskView(group, [], [], "", None)
    bins = activity_bins(values) if values.num_users else []
    plot = activity_plot(group.title, values.metric, bins) if bins else None
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


def metric_tables(groups: Sequence[Group]) -> list[tuple[tuple[str, ...], list[Group]]]:
    """Groups with the same columns share a table."""
    tables: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        if group.metrics:
            tables.setdefault(group.metrics, []).append(group)
    return list(tables.items())


def invalid_rows(rows: Sequence[Row], groups: Sequence[Group]) -> list[tuple[Group, str, Value, int]]:
    """Task, method, invalid rate and number of LLM answers (the row's `users`)."""
    found = []
    for group in groups:
        for method, value in group.invalid.items():
            asked = [
                row["users"]
                for row in rows
                if (row["task"], row["backbone"], row["method"], row["metric"], row["split"])
                == (group.task, group.backbone, method, INVALID, "test")
            ]
            found.append((group, method, value, max(asked)))
    return found


def training(name: str, rows: Sequence[Row]) -> Training:
    steps = [row for row in rows if "loss" in row]
    validation = [row["validation_loss"] for row in rows if "validation_loss" in row]
    return Training(
        name=name,
        plot=loss_plot(name, rows),
        steps=len(steps),
        epochs=len({row["epoch"] for row in steps}),
        samples=sum(row["samples"] for row in steps),
        tokens=sum(row["tokens"] for row in steps),
        validation=validation[-1] if validation else None,
    )


def weight_grids(aggregate: dict[str, Any]) -> list[WeightGrid]:
    """The grids of all tasks, in the order of TASKS."""
    grids = []
    for task, chosen in sorted(aggregate.items(), key=lambda pair: place(pair[0], TASKS)):
        valid = {(first, second): value for first, second, value in chosen["grid"]}
        test = {(first, second): value for first, second, value in chosen.get("test_grid", [])}
        firsts, seconds = (sorted({cell[axis] for cell in valid}) for axis in (0, 1))
        rows = [(a, [(valid[a, b], test.get((a, b))) for b in seconds]) for a in firsts]
        grids.append(WeightGrid(task, chosen["metric"], seconds, rows))
    return grids


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s or 2 h 04 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def task_name(task: str) -> str:
    return TASK_NAMES.get(task, task)


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and text."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in flat(inner, f"{prefix}{key}.")]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return [(prefix.removesuffix("."), text)]
