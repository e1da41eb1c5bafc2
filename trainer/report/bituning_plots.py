"""Plots of Laser's training: both stages of a method follow each other on one axis.

Shapes: S steps, K experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from recloom.trainer.report.plots import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    SMALL,
    SMOOTHED,
    STYLE,
    WIDE,
    line_of,
    new_axes,
    svg,
)
from recloom.trainer.report.system_view import SystemView

if TYPE_CHECKING:
    from recloom.trainer.report.bituning import Stage

AREAS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)  # of neighbours; a thin line parts them
NAMED = 0.06  # an area this high has its number beside it


def validation_lines(stages: Sequence[Stage], view: SystemView) -> Markup:
    """N@10 on validation behind each epoch, a line a method; the epochs that are kept have a ring."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "bituning validation"}):
        figure, axes = new_axes(WIDE)
        before = first_length(stages, "epochs")
        for stage in stages:
            colour, marker, dash = line_of(view, stage.method)
            epochs = sorted(stage.validation)
            at = [epoch + shift(stage, before) for epoch in epochs]
            values = [stage.validation[epoch] for epoch in epochs]
            axes.plot(at, values, color=colour, marker=marker, linestyle=dash)
            if stage.best is not None:
                epoch, value = stage.best
                axes.plot(
                    [epoch + shift(stage, before)],
                    [value],
                    color=colour,
                    marker="o",
                    markersize=9,
                    fillstyle="none",
                )
        finish(figure, axes, stages, view, before, "epoch", "N@10 on validation")
        axes.set_ylim(bottom=0)
        return svg(figure, "NDCG at 10 on validation by epoch, for each method")


def loss_lines(stages: Sequence[Stage], view: SystemView) -> Markup:
    """Moving mean of the contrastive loss, a line a method."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "bituning loss"}):
        figure, axes = new_axes(WIDE)
        before = first_length(stages, "steps")
        for stage in stages:
            colour, marker, dash = line_of(view, stage.method)
            loss_S = np.array([row.get("contrastive", row["loss"]) for row in stage.steps])
            step_S, mean_S = smoothed(stage, loss_S, before)
            axes.plot(step_S, mean_S, color=colour, linestyle=dash, marker=marker if len(step_S) < 9 else "")
        finish(figure, axes, stages, view, before, "optimizer step", "contrastive loss")
        return svg(figure, "The contrastive loss over optimizer steps, for each method")


def load_plot(method: str, stages: Sequence[Stage]) -> Markup:
    """The users' shares of the experts, moving means, piled up to all users."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"load {method}"}):
        figure, axes = new_axes(SMALL)
        before = first_length(stages, "steps")
        parts = [smoothed(stage, stage.experts_SK, before) for stage in stages]
        for step_S, share_SK in parts:
            colours = [AREAS[expert % len(AREAS)] for expert in range(share_SK.shape[1])]
            axes.stackplot(step_S, share_SK.T, colors=colours, alpha=0.8, edgecolor="white", linewidth=0.6)
        name_areas(axes, *parts[-1])
        mark_second_stage(axes, stages, before)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("users by expert")
        return svg(figure, f"{method}: share of the users that each expert takes, over optimizer steps")


def name_areas(axes: Axes, step_S: np.ndarray, share_SK: np.ndarray) -> None:
    """Each expert's number at the right end."""
    tops_K = np.cumsum(share_SK[-1])
    for expert, (top, share) in enumerate(zip(tops_K, share_SK[-1], strict=True)):
        if share >= NAMED:
            axes.annotate(
                str(expert),
                (step_S[-1], top - share / 2),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                color=INK,
                annotation_clip=False,
            )


def smoothed(stage: Stage, values_S: np.ndarray, before: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps on the common axis, and means over a window, column by column."""
    window = max(1, len(values_S) // SMOOTHED)
    sums = np.cumsum(np.concatenate([np.zeros_like(values_S[:1]), values_S]), axis=0)
    step_S = np.array([row["step"] for row in stage.steps])[window - 1 :] + shift(stage, before)
    return step_S, (sums[window:] - sums[:-window]) / window


def first_length(stages: Sequence[Stage], name: str) -> int:
    """Epochs or steps of the longest stage 1: where stage 2 starts for all methods."""
    lengths = [
        stage.epochs if name == "epochs" else len(stage.steps) for stage in stages if stage.number == 1
    ]
    return max(lengths, default=0)


def shift(stage: Stage, before: int) -> int:
    return before if stage.number == 2 else 0


def mark_second_stage(axes: Axes, stages: Sequence[Stage], before: int) -> None:
    if before and any(stage.number == 2 for stage in stages):
        axes.axvline(before, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(
            "stage 2",
            (before, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 1),
            textcoords="offset points",
            color=INK,
            fontsize=7.5,
        )


def finish(
    figure: Figure,
    axes: Axes,
    stages: Sequence[Stage],
    view: SystemView,
    before: int,
    xlabel: str,
    ylabel: str,
) -> None:
    mark_second_stage(axes, stages, before)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    lines = []
    for method in dict.fromkeys(stage.method for stage in stages):
        colour, marker, dash = line_of(view, method)
        lines.append(Line2D([], [], color=colour, marker=marker, linestyle=dash, label=method))
    figure.legend(handles=lines, loc="outside upper left", ncols=3, handlelength=2.2, columnspacing=1.1)
