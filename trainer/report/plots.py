"""Plots as inline SVG: text stays text, ink follows the page's colour scheme, bytes are reproducible."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from recloom.trainer.report.results import LOWER_IS_BETTER, Group, place
from recloom.trainer.report.system_view import SystemView
from recloom.trainer.report.users import Bin

INK = "#010101"  # stands for the page's text colour in the SVG
# Okabe and Ito's colours, told apart with any colour vision; the page lightens the blue on dark paper.
BLUE, ORANGE, GREEN, PURPLE, RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00"
SKY = "#56b4e9"
Dash = Literal["-", "--", ":"]
Line = tuple[str, str, Dash]  # colour, marker, dash
LINES: tuple[Line, ...] = (  # of a view's methods, then of others
    (INK, "o", "--"),
    (GREEN, "s", ":"),
    (ORANGE, "^", "-"),
    (PURPLE, "v", ":"),
    (RED, "P", ":"),
    (SKY, "X", ":"),
    (BLUE, "D", "-"),
    (GREEN, ">", "--"),
    (PURPLE, "h", "-"),
    (INK, "*", "-"),
)
OURS = 6  # the line of the whole system
LOSSES = {  # of stage 1 of A-LLMRec
    "rec": ("recommendation", BLUE, "-"),
    "item_recon": ("item reconstruction", GREEN, "--"),
    "text_recon": ("text reconstruction", RED, ":"),
    "matching": ("matching", PURPLE, "-"),
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "legend.frameon": False,
}
SMALL, WIDE = (3.7, 2.9), (4.3, 2.9)  # inches: readable on a phone, three or two beside each other elsewhere
SMOOTHED = 25  # points of the smoothed loss


def activity_plot(group: Group, metric: str, bins: Sequence[Bin]) -> Markup:
    """Mean metric of users by their number of interactions, one line a method, ± one standard error."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"activity {group.title}"}):
        figure, axes = new_axes(SMALL)
        methods = list(bins[0].means)
        at_B = np.arange(len(bins))
        for index, method in enumerate(methods):
            colour, marker, dash = line_of(group.view, method)
            shift = 0.09 * (index - (len(methods) - 1) / 2)
            axes.errorbar(
                at_B + shift,
                [part.means[method] for part in bins],
                yerr=[part.errors[method] for part in bins],
                color=colour,
                marker=marker,
                linestyle=dash,
                elinewidth=1,
                capsize=2.5,
            )
        axes.set_xticks(at_B, [f"{part.label}\nn={part.num_users}" for part in bins])
        axes.set_xlim(-0.4, len(bins) - 0.6)
        axes.set_xlabel("training interactions of the user")
        axes.set_ylabel("absolute error, stars" if metric == "AE" else metric)
        if metric not in LOWER_IS_BETTER:
            axes.set_ylim(bottom=0)
        legend_above(figure, group, methods)
        names = ", ".join(map(group.label, methods))
        return svg(figure, f"{group.title}: mean {metric} by number of interactions of the user, for {names}")


def loss_plot(name: str, rows: Sequence[dict[str, Any]]) -> Markup:
    """Training loss of every step with its moving mean, and the validation loss."""
    training = np.array([[row["step"], row["loss"]] for row in rows if "loss" in row])
    validation = np.array([[row["step"], row["validation_loss"]] for row in rows if "validation_loss" in row])
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"loss {name}"}):
        figure, axes = new_axes(WIDE)
        if len(training):
            step_S, loss_S = training.T
            window = max(1, len(loss_S) // SMOOTHED)
            if window == 1:
                axes.plot(step_S, loss_S, color=BLUE, marker=".", label="training, a step")
            else:
                mean_S = np.convolve(loss_S, np.ones(window) / window, mode="valid")
                axes.plot(step_S, loss_S, color=BLUE, alpha=0.35, linewidth=0.9, label="training, a step")
                axes.plot(step_S[window - 1 :], mean_S, color=BLUE, label=f"training, mean of {window} steps")
        if len(validation):
            axes.plot(*validation.T, color=RED, marker="o", linestyle="--", label="validation")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss (nats an answer token)")
        if len(training) or len(validation):  # a training without an epoch has neither
            axes.legend(loc="upper right")
        return svg(figure, f"{name}: training and validation loss over optimizer steps")


def alignment_plot(rows: Sequence[dict[str, Any]]) -> Markup:
    """Moving means of the losses of A-LLMRec's stage 1, unweighted; those that are off have no line."""
    step_S = np.array([row["step"] for row in rows])
    window = max(1, len(rows) // SMOOTHED)
    marker = "." if window == 1 else ""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "alignment"}):
        figure, axes = new_axes(WIDE)
        for name, (label, colour, dash) in LOSSES.items():
            loss_S = np.array([row[name] for row in rows])
            if loss_S.any():
                mean_S = np.convolve(loss_S, np.ones(window) / window, mode="valid")
                axes.plot(
                    step_S[window - 1 :], mean_S, color=colour, linestyle=dash, marker=marker, label=label
                )
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss, unweighted" + (f", mean of {window} steps" if window > 1 else ""))
        figure.legend(loc="outside upper left", ncols=2)
        return svg(figure, "Stage 1: the losses over optimizer steps")


def new_axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    return figure, axes


def legend_above(figure: Figure, group: Group, methods: Sequence[str]) -> None:
    lines = []
    for method in methods:
        colour, marker, dash = line_of(group.view, method)
        lines.append(Line2D([], [], color=colour, marker=marker, linestyle=dash, label=group.label(method)))
    figure.legend(
        handles=lines,
        loc="outside upper left",
        ncols=4,
        handlelength=2.2,
        handletextpad=0.5,
        columnspacing=1.1,
    )


def line_of(view: SystemView, method: str) -> Line:
    """Methods by their place, the system's own line left out; recommenders beside the backbone are others."""
    if method == view.ours[0]:
        return LINES[OURS]
    index = place(method, [name for name in view.methods if name not in view.backbones])
    return LINES[min(index + (index >= OURS), len(LINES) - 1)]


def svg(figure: Figure, label: str) -> Markup:
    """The figure as an <svg> element for a page: no ids that could clash, no fixed size, no date."""
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = text.replace(INK, "currentColor").replace(BLUE, f"var(--blue, {BLUE})")
    head = f'<svg role="img" aria-label="{escape(label)}" viewBox='
    return Markup(re.sub(r"<svg [^>]*?viewBox=", head, text, count=1))
