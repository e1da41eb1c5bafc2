"""Rows of a CSV file, and what they say of the machine and the command."""

from __future__ import annotations

import csv
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

PLACES = {
    "--data": "DATA",
    "--data.path": "DATA",
    "--folder": "FOLDER",
    "--model": "MODEL",
    "--corpus": "CORPUS",
}


def append(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Add rows; a new file begins with its columns, those of the first row when none are given."""
    is_new = not path.is_file()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(columns or rows[0]), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def cpu_name() -> str:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{model[0].split(':')[1].strip() if model else platform.processor()}, {os.cpu_count()} cores"


def machine() -> str:
    """The GPUs where there are any, else the CPU."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return cpu_name()


def command_line() -> str:
    """The command as it was typed, with places on this machine left out."""
    script, *words = sys.argv
    shown = [
        PLACES[before] if before in PLACES and "/" in word else word
        for before, word in pairwise(["", *words])
    ]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *shown])
