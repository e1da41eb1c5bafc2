"""The figure of a fault drill: where in a training each kill fell, and what it cost.

python tools/fault_figure.py runs/fault_drill.jsonl docs/results/reliability.png
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from recloom.tools.fault_aim import AIMS

MARKS = dict(zip(AIMS, "o^sD", strict=True))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Kills by the step they fell at; a mark that is filled left a torn checkpoint."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kills = [row for row in rows if "kill" in row]
    figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
    for aim, mark in MARKS.items():
        own = [row for row in kills if row["aim"] == aim]
        for torn in (False, True):
            some = [row for row in own if bool(row["torn"]) == torn]
            axes.scatter(
                [row["kill"] + 1 for row in some],
                [row["steps"] for row in some],
                marker=mark,
                facecolors="C3" if torn else "none",
                edgecolors="C3" if torn else "C0",
                label=f"{aim}, {'a torn checkpoint is left' if torn else 'no torn checkpoint'}",
            )
    for place in sorted(
        {done for done, row in zip(kills_before(rows), rows, strict=True) if "kill" not in row}
    ):
        axes.axvline(place + 0.5, color="0.7", linewidth=0.8)
    axes.set_xlabel(f"kill ({len(kills)}; grey: a training ended, equal to the undisturbed one)")
    axes.set_ylabel("steps done when it fell")
    figure.legend(loc="outside right center", fontsize="x-small")
    figure.savefig(path, dpi=110)


def kills_before(rows: list[dict[str, Any]]) -> list[int]:
    """How many kills each row has before it; a training may end without one."""
    return list(itertools.accumulate(("kill" in row for row in rows[:-1]), initial=0))


def main() -> None:
    made = argparse.ArgumentParser(description="Draw where the kills of a fault drill fell.")
    made.add_argument("rows", type=Path, help="the --out of tools/fault_drill.py")
    made.add_argument("figure", type=Path, help="a .png or .svg to write")
    arguments = made.parse_args()
    draw([json.loads(line) for line in arguments.rows.read_text().splitlines()], arguments.figure)


if __name__ == "__main__":
    main()
