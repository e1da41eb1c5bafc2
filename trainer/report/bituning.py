"""What the page shows of Laser's training: what is trained, validation, loss, and how users fall to experts.

Shapes: S steps, K experts, N users of a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from recloom.trainer.expert_load import collapsed_expert
from recloom.trainer.report.bituning_plots import load_plot, loss_lines, validation_lines
from recloom.trainer.report.results import Row, Value
from recloom.trainer.report.system_view import SystemView

FILE_METRIC, METRIC = "validation_N@10", "validation N@10"
EXPERT = "expert_"
FULL_TUNING = "full tuning"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


@dataclass(frozen=True)
class Stage:
    """A stage of a method's training: its steps, and N@10 on validation behind each epoch.

    experts_SK: the share of a step's users that each expert took; no column without an M-Former.
    """

    name: str
    method: str
    number: int
    steps: list[Row]
    validation: dict[int, float]
    experts_SK: np.ndarray

    @property
    def best(self) -> tuple[int, float] | None:
        """The epoch that is kept, the first of equal ones, and its value."""
        if not self.validation:
            return None
        epoch = max(self.validation, key=lambda epoch: (self.validation[epoch], -epoch))
        return epoch, self.validation[epoch]

    @property
    def epochs(self) -> int:
        return max(self.validation, default=0)

    @property
    def loads(self) -> dict[int, np.ndarray]:
        """Share of an epoch's users that each expert took, by epoch from 1; empty for fewer than two."""
        if self.experts_SK.shape[1] < 2:
            return {}
        epoch_S = np.array([row["epoch"] for row in self.steps])
        users_S = np.array([row["samples"] for row in self.steps], dtype=float)
        return {
            int(epoch) + 1: np.average(self.experts_SK[chosen_S], axis=0, weights=users_S[chosen_S])
            for epoch in np.unique(epoch_S)
            for chosen_S in [epoch_S == epoch]
        }

    @property
    def collapses(self) -> list[str]:
        """A sentence for each epoch in which one expert took almost all."""
        return [
            f"{self.name}: expert {expert} took {percent(load_K[expert])} of epoch {epoch}'s users"
            for epoch, load_K in self.loads.items()
            if (expert := collapsed_expert(load_K)) is not None
        ]

    @property
    def last_load(self) -> str:
        """The largest share of the last epoch, in words; empty without several experts."""
        if not self.loads:
            return ""
        load_K = self.loads[max(self.loads)]
        return f"expert {load_K.argmax()}: {percent(load_K.max())} (even: {percent(1 / len(load_K))})"


@dataclass(frozen=True)
class LoadPlot:
    name: str
    plot: Markup


@dataclass(frozen=True)
class BiTuning:
    """parameters, most first: name, count, share of full tuning (None where that is not known).

    Plots are None where nothing was trained.
    """

    parameters: list[tuple[str, int, float | None]]
    stages: list[Stage]
    validation: Markup | None
    losses: Markup | None
    loads: list[LoadPlot]

    @property
    def collapses(self) -> list[str]:
        return [text for stage in self.stages for text in stage.collapses]

    @property
    def has_experts(self) -> bool:
        return bool(self.loads)


def bituning(
    parameters: Mapping[str, int], curves: Mapping[str, Sequence[Row]], view: SystemView
) -> BiTuning | None:
    """None for a system that writes no counts of parameters."""
    if not parameters:
        return None
    whole = parameters.get(FULL_TUNING)
    ordered = sorted(parameters.items(), key=lambda pair: -pair[1])
    counts = [(name, count, count / whole if whole else None) for name, count in ordered]
    stages = [stage for stage in read_stages(curves, view) if stage.steps]
    return BiTuning(
        counts,
        stages,
        validation_lines(stages, view) if stages else None,
        loss_lines(stages, view) if stages else None,
        [LoadPlot(method, load_plot(method, part)) for method, part in by_method(stages).items()],
    )


def by_method(stages: Sequence[Stage]) -> dict[str, list[Stage]]:
    """The stages of the methods that have several experts."""
    found: dict[str, list[Stage]] = {}
    for stage in stages:
        if stage.loads:
            found.setdefault(stage.method, []).append(stage)
    return found


def read_stages(curves: Mapping[str, Sequence[Row]], view: SystemView) -> list[Stage]:
    """The trainings of tune/METHOD_STAGE, methods in the order of tables; one without a step is there too."""
    order = list(view.methods)
    found = []
    for folder, rows in curves.items():
        key, _, number = folder.rpartition("_")
        if key in view.model_names and number.isdigit():
            found.append(make_stage(view.model_names[key], int(number), rows))
    return sorted(found, key=lambda stage: (order.index(stage.method), stage.number))


def make_stage(method: str, number: int, rows: Sequence[Row]) -> Stage:
    steps = [row for row in rows if "loss" in row]
    names = [name for name in (steps[0] if steps else {}) if name.startswith(EXPERT)]
    experts_SK = np.array([[row[name] for name in names] for row in steps]).reshape(len(steps), len(names))
    validation = {row["epoch"]: row[FILE_METRIC] for row in rows if FILE_METRIC in row}
    return Stage(f"{method}, stage {number}", method, number, steps, validation, experts_SK)


def validation_values(curves: Mapping[str, Sequence[Row]], view: SystemView) -> dict[tuple[str, str], Value]:
    """By (method, metric): N@10 on validation of what the last stage keeps (the paper's Table 7)."""
    found = {}
    for stage in read_stages(curves, view):  # later stages come later
        if stage.best is not None:
            found[stage.method, METRIC] = Value(stage.best[1], math.nan)
    return found
