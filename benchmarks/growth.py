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
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from csv_rows import append, command_line, machine
from fits import exponent
from tuning import make_corpus, measure

from recloom.data_shards.artifacts import cache_dir
from recloom.trainer.models import resolve_model

HERE = Path(__file__).resolve().parent
ROWS, DATA_ROWS = HERE / "growth.csv", HERE / "data.csv"
FIGURE = HERE.parent / "docs" / "growth.png"
Points = list[tuple[float, float]]


def measure_ranks(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Median seconds of a step for each number of ranks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = {
            "model": resolve_model(options.model, cache_dir()),
            "corpus": str(options.corpus or make_corpus(folder / "run", options.model)),
            "steps": options.steps,
            "rows": options.rows,
            "pack_length": options.pack_length,
            "samples": 0,
            "checked": 1,
            "dtype": "bfloat16",
            "packed": True,
            "liger": False,
        }
        turns: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in options.ranks}
        for turn in range(options.turns):
            for ranks, found in turns.items():
                found.append(measure("ours.py", ranks, work, folder))
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


def series() -> dict[str, tuple[str, Points]]:
    """What each curve's x is, and its points; of rows for the same point the last."""
    found: dict[str, tuple[str, dict[float, float]]] = {}
    for row in read_rows(DATA_ROWS):
        if row["part"] == "growth":
            pairs = [pair.removesuffix("ms").split(":") for pair in row["shape"].split()]
            points = {float(size): float(ms) / 1e3 for size, ms in pairs}
            found[row["case"].replace(" against ", ", s, against ")] = (row["case"].split()[-1], points)
        elif row["part"] == "preparation":
            _, points = found.setdefault("preparation, CPU s", ("interactions", {}))
            points[float(row["case"].split()[0].replace(",", ""))] = float(row["CPU seconds"])
    for row in read_rows(ROWS):
        _, points = found.setdefault("tuning step, s", ("ranks", {}))
        points[float(row["size"])] = float(row["seconds a step"])
    return {name: (axis, sorted(points.items())) for name, (axis, points) in found.items()}


def fitted(name: str, points: Points) -> float:
    """The exponent; below a million interactions files and the start of a process count more than rows."""
    kept = [point for point in points if not name.startswith("preparation") or point[0] >= 1e6]
    return exponent(*zip(*kept, strict=True))


def draw(curves: dict[str, tuple[str, Points]], path: Path) -> None:
    """One panel an axis, both scales logarithmic."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes_of = list(dict.fromkeys(axis for axis, _ in curves.values()))
    figure, panels = plt.subplots(
        1, len(axes_of), figsize=(3.2 * len(axes_of), 3), layout="constrained", squeeze=False
    )
    for panel, axis in zip(panels[0], axes_of, strict=True):
        for name, (of, points) in curves.items():
            if of == axis:
                x, y = np.array(points).T
                short = name.split(",")[0]
                panel.plot(x, y, "o-", label=f"{short}: exponent {fitted(name, points):.2f}")
        values = [y for of, points in curves.values() if of == axis for _, y in points]
        room = (min(values) / 4, max(values) * 4)  # enough for whole powers of ten
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="seconds", ylim=room)
        panel.set_xticks(x, [f"{one:g}" for one in x])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.savefig(path, dpi=130)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    made.add_argument("--plot", action="store_true", help="only draw the rows that are there")
    made.add_argument("--model", default="smollm2-135m-instruct", help="a name, or a Hugging Face folder")
    made.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    made.add_argument("--steps", type=int, default=3, help="counted steps a turn")
    made.add_argument("--turns", type=int, default=2, help="turns of each number of ranks")
    made.add_argument("--rows", type=int, default=4, help="packed rows a step, all ranks")
    made.add_argument("--pack-length", type=int, default=512, help="tokens of a packed row")
    made.add_argument("--corpus", type=Path, help="a folder of shards; made from ML-100K when left out")
    made.add_argument("--no-rows", action="store_true", help="print and draw, add no rows")
    return made


def main() -> None:
    options = parser().parse_args()
    if not options.plot:
        rows = measure_ranks(options)
        if not options.no_rows:
            append(ROWS, rows)
    curves = series()
    draw(curves, FIGURE)
    for name, (_, points) in curves.items():
        print(
            f"{name}: exponent {fitted(name, points):.2f} ({', '.join(f'{x:g}: {y:g}' for x, y in points)})"
        )


if __name__ == "__main__":
    main()
