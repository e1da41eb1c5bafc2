"""Our kernels against their peers, side by side in one process an op; rows go to kernels.csv.

    python benchmarks/kernels.py                             ops that need no titles, a CPU thread
    python benchmarks/kernels.py --data DATA                 all ops
    python benchmarks/kernels.py --data DATA --op full_rank  one op
    python benchmarks/kernels.py --plot                      draw docs/kernels.png from the rows

Each case is checked first: both sides must give the same result. Then they take turns; a row has the medians,
20th and 80th percentiles of the turns, the ratio of the medians (peer / ours) and the share of the machine's
copy bandwidth, measured in the same run, that our side reaches on the bytes that anyone must move.
DATA is a folder with the data sets ml-1m, bookcrossing-subset, amazon2014-beauty, amazon2018-scientific and
llama2-tokenizer; the ops of ON_TITLES need it.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib
import multiprocessing
import os
import shlex
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from csv_rows import cpu_name
from kernel_ops.case import Case
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
ROWS = HERE / "kernels.csv"
FLUSH_BYTES = 256 * 2**20
ON_TITLES = ("token_trie", "constrained_step", "generate_items", "bulk_items")
OPS = ("soft_tokens", "catalog_softmax", "full_rank", "packed_attention", "row_passes", *ON_TITLES)


def cases_of(op: str, device: str, data: Path | None) -> Iterator[Case]:
    """The cases of one op."""
    module = importlib.import_module(f"kernel_ops.{op}")
    if op not in ON_TITLES:
        return module.cases(device)
    assert data is not None
    return module.cases(device, data)


def timed(call: Callable[[], Any], device: str) -> float:
    """Milliseconds of one call; on a GPU by events, with the cache flushed before."""
    if device == "cpu":
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)
    torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device).zero_()
    begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin_event.record()
    call()
    end_event.record()
    torch.cuda.synchronize()
    return begin_event.elapsed_time(end_event)


def turns(case: Case, device: str, repeats: int, budget_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Times of both sides in turn; fewer turns than `repeats`, at least 5, when they exceed the budget."""
    for call in (case.ours, case.theirs):
        call()  # compiles, fills caches
    times: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(times) < repeats and (len(times) < 5 or time.perf_counter() - begin < budget_s):
        pair = [
            (n, timed(call, device))
            for n, call in sorted(enumerate((case.ours, case.theirs)), reverse=len(times) % 2 == 1)
        ]
        times.append(tuple(value for _, value in sorted(pair)))  # type: ignore[arg-type]
    ours, theirs = np.array(times).T
    return ours, theirs


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written, of a large copy: the best of some."""
    source = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    best = min(timed(lambda: target.copy_(source), device) for _ in range(10))
    return 2 * FLUSH_BYTES / (best / 1e3)


def row_of(case: Case, options: argparse.Namespace, bandwidth: float) -> dict[str, str]:
    case.check()
    ours, theirs = turns(case, options.device, options.repeats, options.budget)
    numbers = {
        f"{side} {name} ms": f"{np.percentile(times, share):.4f}"
        for side, times in (("ours", ours), ("peer", theirs))
        for name, share in (("median", 50), ("p20", 20), ("p80", 80))
    }
    reached = case.least_bytes / (np.median(ours) / 1e3) / bandwidth
    return {
        "date": datetime.date.today().isoformat(),
        "op": case.op,
        "peer": case.peer,
        "shape": case.shape,
        "dtype": case.dtype,
        **numbers,
        "ratio": f"{np.median(theirs) / np.median(ours):.2f}",
        "turns": str(len(ours)),
        "least MB": f"{case.least_bytes / 1e6:.2f}",
        "copy GB/s": f"{bandwidth / 1e9:.1f}",
        "share of copy": f"{reached:.3f}",
        "notes": " ".join(f"{key}={value}" for key, value in case.labels.items()),
        "device": device_name(options.device),
        "threads": str(options.threads),
        "torch": torch.__version__,
        "command": command_line(options),
    }


def device_name(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    return cpu_name()


def command_line(options: argparse.Namespace) -> str:
    words = ["python", "benchmarks/kernels.py", *(["--data", "DATA"] if options.data else [])]
    words += ["--op", *options.op, "--device", options.device, "--threads", str(options.threads)]
    return shlex.join(words)


def add_row(row: dict[str, str]) -> None:
    """Rows of one op, peer, shape, type, notes, device and thread count replace each other."""
    key = ("op", "peer", "shape", "dtype", "notes", "device", "threads")
    kept = []
    if ROWS.exists():
        with open(ROWS, newline="") as file:
            kept = [old for old in csv.DictReader(file) if any(old[name] != row[name] for name in key)]
    unfinished = ROWS.with_suffix(".unfinished")
    with open(unfinished, "w", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, row])
    os.replace(unfinished, ROWS)


def measure(op: str, options: argparse.Namespace) -> list[dict[str, str]]:
    """The rows of an op's cases, each written as soon as it is known."""
    torch.set_num_threads(options.threads)
    bandwidth = copy_bandwidth(options.device)
    rows = []
    for case in tqdm(cases_of(op, options.device, options.data), desc=op, unit=" cases"):
        rows.append(row_of(case, options, bandwidth))
        tqdm.write(said(rows[-1]))
        if not options.no_rows:
            add_row(rows[-1])
    return rows


def said(row: dict[str, str]) -> str:
    case = " ".join(row[name] for name in ("op", "shape", "dtype", "notes") if row[name])
    share = f", {row['share of copy']} of the copy bandwidth" if float(row["least MB"]) else ""
    return f"{case}: {row['ours median ms']} ms, {row['peer']} {row['ratio']}x{share}"


def measure_all(options: argparse.Namespace) -> None:
    """A process an op: vLLM can't start beside an xgrammar or loops in use. All ratios come last."""
    spawn = multiprocessing.get_context("spawn")
    rows = []
    for op in options.op:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            rows += pool.submit(measure, op, options).result()
    print("\n".join(["", *map(said, rows)]))


def plot(path: Path) -> None:
    """Latency of a constrained step against catalogue, rows and vocabulary."""
    import matplotlib.pyplot as plt

    with open(ROWS, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["op"] == "constrained_step"]
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    for axis, (name, letter) in zip(axes, (("items", "items"), ("rows", "B"), ("words", "V")), strict=True):
        for side, peer in (("ours", None), ("peer", "STATIC")):
            points = series(rows, letter, side, peer)
            axis.plot(
                *zip(*points, strict=True),
                "o-" if side == "ours" else "s--",
                label="RecLoom" if side == "ours" else peer,
            )
        axis.set(
            ylim=(0.2 if name == "rows" else 1, 500),
            xscale="log",
            yscale="log",
            xlabel=name,
            ylabel="ms a step",
        )
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=150)


def series(rows: list[dict[str, str]], letter: str, side: str, peer: str | None) -> list[tuple[float, float]]:
    """(value of the letter, median ms) of the rows whose other letters are the usual ones."""
    usual = {"items": "100000", "B": "32", "V": "32000"}
    points = {}
    for row in rows:
        shape = dict(part.split("=") for part in row["shape"].split())
        others = all(shape[name] == value for name, value in usual.items() if name != letter)
        if others and row["dtype"] == "float32" and (peer is None or row["peer"] == peer):
            factor = float(shape["M"]) if letter == "B" else 1.0
            points[float(shape[letter]) * factor] = float(row[f"{side} median ms"])
    return sorted(points.items())


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of data sets")
    parser.add_argument("--op", nargs="+", choices=OPS, help="which; all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both sides")
    parser.add_argument("--repeats", type=int, default=21, help="turns of each side")
    parser.add_argument("--budget", type=float, default=5.0, help="seconds a case, for at least 5 turns")
    parser.add_argument("--no-rows", action="store_true", help="print, add no rows")
    parser.add_argument("--plot", action="store_true", help="only draw the rows")
    options = parser.parse_args()
    wanted = options.op or (OPS if options.data else [op for op in OPS if op not in ON_TITLES])
    for op in wanted:
        if op in ON_TITLES and options.data is None:
            parser.error(f"--op {op} needs real titles: give --data.")
    options.op = list(wanted)
    return options


def main() -> None:
    options = parse_options()
    if options.plot:
        plot(HERE.parent / "docs/kernels.png")
    else:
        measure_all(options)


if __name__ == "__main__":
    main()
