"""What the page shows of how the results came about: curves, weights, answers that were no use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from recloom.trainer.report.plots import alignment_plot, loss_plot
from recloom.trainer.report.results import INVALID, TASKS, Group, Row, Value, place


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


@dataclass(frozen=True)
class AlignmentCurve:
    """Stage 1 of A-LLMRec."""

    plot: Markup
    steps: int
    epochs: int


@dataclass(frozen=True)
class WeightGrid:
    """A task's metric over the weights (Figure 3 of the paper): rows (alpha_1, cells by alpha_2).

    A cell is (validation, test or None); the choice is made by validation alone.
    """

    task: str
    metric: str
    alphas_2: list[float]
    rows: list[tuple[float, list[tuple[float, float | None]]]]


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


def alignment_curve(rows: Sequence[Row]) -> AlignmentCurve | None:
    if not rows:
        return None
    return AlignmentCurve(alignment_plot(rows), len(rows), len({row["epoch"] for row in rows}))


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
