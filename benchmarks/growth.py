"""How cost grows: ranks are measured here, the data path's axes stand in data.csv; a figure with exponents.

    python benchmarks/growth.py          SmolLM2-135M on 1, 2 and 4 CPU ranks, ML-100K's instructions
    python benchmarks/growth.py --plot   only draws docs/growth.png from the rows that are there

Each number of ranks trains all weights on the same packed rows a step with ZeRO-3, in processes of its own,
in turns; the first steps are not counted. More ranks than cores share them, which shows what ranks cost and
not what they gain. Rows go to growth.csv. Those of data.csv are made by
`python benchmarks/data.py --only growth preparation --large`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import torch
from csv_rows import append, command_line, machine
from fits import exponent
from tuning import measure, work_of
from tuning import parser as tuning_parser

HERE = Path(__file__).resolve().parent
ROWS, DATA_ROWS = HERE / "growth.csv", HERE / "data.csv"
FIGURE = HERE.parent / "docs" / "growth.png"
RANKS = (1, 2, 4)
WORK = ("--steps", "3", "--turns", "2", "--rows", "4", "--pack-length", "512")  # of tuning.py


@dataclass
class Curve:
    """Seconds against sizes of one axis. Sizes below `least` are drawn and not fitted."""

    name: str
    axis: str
    least: float = 0
    points: dict[float, float] = field(default_factory=dict)

    @property
    def exponent(self) -> float:
        kept = [point for point in self.points.items() if point[0] >= self.least]
        return exponent(*zip(*kept, strict=True))


def measure_ranks() -> list[dict[str, Any]]:
    """Median seconds of a step for each number of ranks."""
    options = tuning_parser().parse_args(WORK)
    turns: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in RANKS}
    with tempfile.TemporaryDirectory() as name:
        work = {**work_of(options, Path(name)), "packed": True, "compile": False}
        for turn in range(options.turns):
            for ranks, found in turns.items():
                found.append(measure("ours.py", ranks, work, Path(name)))
                seconds = statistics.median(found[-1]["seconds"])
                print(f"turn {turn + 1}, {ranks} ranks: {seconds:.2f} s a step", file=sys.stderr, flush=True)
    return [row_of(ranks, found, options) for ranks, found in turns.items()]


def row_of(ranks: int, turns: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    seconds = [one for turn in turns for one in turn["seconds"]]
    tokens = [one for turn in turns for one in turn["tokens"]]
    return {
        "date": datetime.date.today().isoformat(),
        "axis": "ranks",
        "size": ranks,
        "seconds a step": round(statistics.median(seconds), 3),
        "tokens/s": round(statistics.median(n / s for n, s in zip(tokens, seconds, strict=True)), 1),
        "GiB a rank": round(max(turn["gib_a_rank"] for turn in turns), 2),
        "steps": len(seconds),
        "rows": options.rows,
        "pack length": options.pack_length,
        "model": Path(options.model).name,
        "machine": machine(),
        "torch": torch.__version__,
        "command": command_line(),
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_curves() -> list[Curve]:
    """What the rows tell; of a point that was measured twice the last counts."""
    curves: dict[str, Curve] = {}
    for row in read_rows(DATA_ROWS):
        if row["part"] == "growth":
            name, axis = row["case"].split(" against ")
            pairs = [pair.removesuffix("ms").split(":") for pair in row["shape"].split()]
            curve = Curve(name, axis, points={float(size): float(ms) / 1e3 for size, ms in pairs})
            curves[row["case"]] = curve
        elif row["part"] == "preparation":
            # below a million rows the files and the start of a process count more than the rows
            curve = curves.setdefault("preparation", Curve("preparation, CPU", "interactions", least=1e6))
            curve.points[float(row["case"].split()[0].replace(",", ""))] = float(row["CPU seconds"])
    for row in read_rows(ROWS):
        curve = curves.setdefault("ranks", Curve("tuning step", "ranks"))
        curve.points[float(row["size"])] = float(row["seconds a step"])
    return list(curves.values())


def draw(curves: list[Curve], path: Path) -> None:
    """One panel an axis, both scales logarithmic."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes = list(dict.fromkeys(curve.axis for curve in curves))
    figure, panels = plt.subplots(
        1, len(axes), figsize=(3.2 * len(axes), 3), layout="constrained", squeeze=False
    )
    for panel, axis in zip(panels[0], axes, strict=True):
        drawn = [curve for curve in curves if curve.axis == axis]
        for curve in drawn:
            panel.plot(
                list(curve.points),
                list(curve.points.values()),
                "o-",
                label=f"{curve.name}: exponent {curve.exponent:.2f}",
            )
        seconds = [one for curve in drawn for one in curve.points.values()]
        room = (min(seconds) / 4, max(seconds) * 4)  # enough for whole powers of ten
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="seconds", ylim=room)
        panel.set_xticks(list(drawn[0].points), [f"{size:g}" for size in drawn[0].points])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--plot", action="store_true", help="only draw the rows that are there")
    if not parser.parse_args().plot:
        append(ROWS, measure_ranks())
    curves = read_curves()
    draw(curves, FIGURE)
    for curve in curves:
        points = ", ".join(f"{size:g}: {seconds:g} s" for size, seconds in curve.points.items())
        print(f"{curve.name} against {curve.axis}: exponent {curve.exponent:.2f} ({points})")


if __name__ == "__main__":
    main()
