"""The data path: prompt to packed batch against tokenizer + collator, how it grows, and preparation at scale.

    python benchmarks/data.py                        ML-100K, which is downloaded; to 10 million interactions
    python benchmarks/data.py --data DATA            also LLaMA-2's tokenizer and Amazon's longer titles
    python benchmarks/data.py --only preparation --large      100 million interactions

Three parts. `batches`: the same questions, given as integers, become batches by RecLoom (compiled template,
best-fit packed rows) and by Hugging Face (strings, one tokenizer call that takes all cores, a collator). Ids
and labels are checked to be the same, then both take turns. `growth`: RecLoom's time against samples, items
and length of history, with the exponent of a fit. `preparation`: a log of synthetic interactions becomes
splits and training samples in token ids, each size in a process of its own that tells its peak memory; one
is killed on the way, goes on, and must end in the same files. Rows go to data.csv, the ratios come last.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "true"  # the peer's honest best

import numpy as np
import tokenizers
import transformers
from csv_rows import append, command_line, cpu_name
from data_sides import prompts
from data_sides.preparation import titles
from fits import exponent

from recloom.data_shards.artifacts import MANIFEST, cache_dir, read_manifest
from recloom.data_shards.packing import packing_efficiency
from recloom.data_shards.ragged import end_to_end
from recloom.data_shards.rendered_batch import pack_batch
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.sources.registry import source_module
from recloom.data_shards.tables import Tables
from recloom.trainer.models import smollm2_folder

HERE = Path(__file__).resolve().parent
ROWS = HERE / "data.csv"
SIDE = HERE / "data_sides" / "preparation.py"
PARTS = ("batches", "growth", "preparation")
NUM_ITEMS = 20_000  # of the synthetic logs
KILLED = 1_000_000
FIELDS = (
    "date", "part", "case", "peer", "shape", "ours median ms", "ours p20 ms", "ours p80 ms", "peer median ms",
    "peer p20 ms", "peer p80 ms", "ratio", "turns", "tokens", "packing efficiency", "compile ms", "exponent",
    "seconds", "CPU seconds", "peak GiB", "machine", "numpy", "transformers", "tokenizers", "command",
)  # fmt: skip


def load_tables(source: str, **settings: Any) -> Tables:
    module = source_module(source)
    tables: Tables = module.load(module.Settings(**settings), cache_dir())
    return tables


def beauty(data: Path) -> Tables:
    folder = data / "amazon2014-beauty"
    return load_tables(
        "table",
        name="Beauty",
        interactions={
            "path": str(folder / "interactions.csv"),
            "columns": {"user": "user", "item": "item", "timestamp": "position"},
        },
        items={"path": str(folder / "items.csv"), "columns": {"item": "item", "title": "title"}},
    )


def cases(data: Path | None) -> list[tuple[str, Tables, str, str]]:
    """(data set, its tables, name of the tokenizer, its folder)."""
    movies = load_tables("movielens", variant="100k")
    smol = str(smollm2_folder(cache_dir()))
    found = [("ML-100K", movies, "SmolLM2", smol)]
    if data is not None:
        found.append(("ML-100K", movies, "LLaMA-2", str(data / "llama2-tokenizer")))
        found.append(("Beauty", beauty(data), "SmolLM2", smol))
    return found


def load_tokenizer(folder: str) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def milliseconds(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    begin = clock()
    call()
    return 1e3 * (clock() - begin)


def spread(side: str, times: Sequence[float]) -> dict[str, str]:
    shares = (("median", 50), ("p20", 20), ("p80", 80))
    return {f"{side} {name} ms": f"{np.percentile(times, share):.2f}" for name, share in shares}


def measure_batches(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name, tables, tokenizer_name, folder in cases(options.data):
        tokenizer = load_tokenizer(folder)
        for family in prompts.FAMILIES:
            questions = prompts.make_questions(family, tables, options.samples)
            rows += measure_questions(
                questions, tokenizer, f"{family}, {name}, {tokenizer_name}", options.turns
            )
    return rows


def measure_questions(
    questions: prompts.Questions, tokenizer: Any, case: str, turns: int
) -> list[dict[str, Any]]:
    """Ours against each peer in turns, after both were seen to give the same."""
    compiled = prompts.compile_questions(questions, Renderer(tokenizer))
    template = prompts.plain_template(questions)
    compile_ms = milliseconds(lambda: compiled.render(questions.values))
    batch = compiled.render(questions.values)
    prompts.check(batch, prompts.features(tokenizer, questions, template))
    packed = prompts.ours(compiled, questions)
    rows = []
    for peer, collator in prompts.peers(tokenizer).items():
        ours, theirs = in_turns(
            lambda: prompts.ours(compiled, questions),
            partial(prompts.theirs, tokenizer, collator, questions, template),
            turns,
        )
        rows.append(
            {
                "part": "batches",
                "case": case,
                "peer": peer,
                "shape": f"N={len(batch)} history={prompts.HISTORY} candidates={prompts.CANDIDATES} "
                f"capacity={prompts.CAPACITY} window={prompts.WINDOW} batch={prompts.BATCH}",
                **spread("ours", ours),
                **spread("peer", theirs),
                "ratio": f"{np.median(theirs) / np.median(ours):.1f}",
                "turns": turns,
                "tokens": int(batch.lengths_N.sum()),
                "packing efficiency": f"{efficiency(batch, packed):.4f}",
                "compile ms": f"{compile_ms:.0f}",
            }
        )
        print(
            f"{case}: {rows[-1]['ours median ms']} ms, {peer} {rows[-1]['ratio']}x",
            file=sys.stderr,
            flush=True,
        )
    return rows


def efficiency(batch: Any, packed: Sequence[Any]) -> float:
    return packing_efficiency(batch.lengths_N, [row.sample_indices for row in packed], prompts.CAPACITY)


def in_turns(
    ours: Callable[[], Any], theirs: Callable[[], Any], turns: int
) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns):
        for side in (0, 1) if turn % 2 else (1, 0):
            times[side].append(milliseconds((ours, theirs)[side]))
    return times


def measure_growth(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time of render and packing along one axis at a time, and of compiling the catalogue."""
    tokenizer = load_tokenizer(str(smollm2_folder(cache_dir())))
    rows = []
    for axis, sizes in {
        "samples": (1024, 4096, 16384),
        "items": (1000, 4000, 16000),
        "history": (10, 40, 160),
    }.items():
        found = [growth_point(Renderer(tokenizer), options.turns, **{axis: size}) for size in sizes]
        for what in ("batch", "compile") if axis == "items" else ("batch",):
            times = [point[what] for point in found]
            rows.append(
                {
                    "part": "growth",
                    "case": f"{what} against {axis}",
                    "shape": " ".join(f"{size}:{one:.1f}ms" for size, one in zip(sizes, times, strict=True)),
                    "exponent": f"{exponent(sizes, times):.2f}",
                }
            )
    return rows


def growth_point(
    renderer: Renderer, turns: int, samples: int = 2048, items: int = 2000, history: int = 10
) -> dict[str, float]:
    """Median CPU ms of a batch (one thread), and of compiling (the first batch less a later one)."""
    rng = np.random.default_rng(0)
    values = {
        name: end_to_end(rng.integers(0, items, samples * count), np.full(samples, count))
        for name, count in (("history", history), ("candidates", prompts.CANDIDATES), ("answer", 1))
    }
    questions = prompts.Questions("next_item", values, [f'"{title}"' for title in titles(items)])
    compiled = prompts.compile_questions(questions, renderer)

    def read_all() -> None:
        """As a training reads them: a row is forgotten before the next."""
        for _ in pack_batch(compiled.render(values), prompts.CAPACITY, prompts.WINDOW):
            pass

    first, *later = [milliseconds(read_all, time.process_time) for _ in range(turns + 1)]
    batch = float(np.median(later))
    return {"batch": batch, "compile": max(first - batch, 0.01)}


def side(step: str, work: dict[str, Any]) -> dict[str, Any]:
    """One step of the preparation in a process of its own."""
    done = subprocess.run(side_command(step, work), check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def side_command(step: str, work: dict[str, Any]) -> list[str]:
    return [sys.executable, str(SIDE), step, json.dumps(work)]


def measure_preparation(options: argparse.Namespace) -> list[dict[str, Any]]:
    sizes = [10**power for power in range(5, 9 if options.large else 8)]
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            work = {"rows": size, "items": NUM_ITEMS, "folder": folder, "out": "out"}
            work["model"] = str(smollm2_folder(cache_dir()))
            side("make", work)
            found = side("prepare", work)
            if size == KILLED:
                check_kill(work)
        print(
            f"{size:,} interactions: {found['seconds']:.1f} s, {found['peak_gib']:.2f} GiB", file=sys.stderr
        )
        rows.append(
            {
                "part": "preparation",
                "case": f"{size:,} interactions",
                "shape": f"users={size // 100} items={NUM_ITEMS} samples={found['num_samples']} "
                f"parts={found['num_parts']}",
                "tokens": found["num_tokens"],
                "compile ms": f"{found['compile_ms']:.0f}",
                "seconds": f"{found['seconds']:.2f}",
                "CPU seconds": f"{found['cpu_seconds']:.2f}",
                "peak GiB": f"{found['peak_gib']:.2f}",
            }
        )
    # below a million rows the files and the start of a process count more than the rows
    seconds = [float(row["CPU seconds"]) for row in rows]
    rows[-1]["exponent"] = f"{exponent(sizes[1:], seconds[1:]):.2f}"
    return rows


def check_kill(work: dict[str, Any]) -> None:
    """Kill a preparation on its way and run it again: the files must be those of the whole."""
    killed = {**work, "out": "killed"}
    out = Path(work["folder"]) / "killed"
    process = subprocess.Popen(side_command("prepare", killed), stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("rows-*.npy")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / MANIFEST).exists(), "the process was done before it was killed"
    side("prepare", killed)
    whole, again = (read_manifest(folder, verify=True)["files"] for folder in (out.with_name("out"), out))
    assert whole == again, "a killed preparation ended in other files"
    print("killed and run again: the same files", file=sys.stderr)


def add(rows: list[dict[str, Any]]) -> None:
    shared = {
        "date": datetime.date.today().isoformat(),
        "machine": cpu_name(),
        "numpy": np.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "command": command_line(),
    }
    append(ROWS, [{**shared, **row} for row in rows], FIELDS)


def report(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["part"] == "growth":
            print(f"{row['case']}: exponent {row['exponent']} ({row['shape']})")
        elif row["part"] == "preparation":
            fit = f", exponent {row['exponent']}" if "exponent" in row else ""
            took = f"{row['seconds']} s ({row['CPU seconds']} of CPU), {row['peak GiB']} GiB at most"
            print(f"{row['case']}: {took}{fit}")
    for row in rows:
        if row["part"] == "batches":
            print(f"{row['case']}: {row['ratio']} times {row['peer']}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of data sets")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--samples", type=int, default=2048, help="questions of a batch")
    parser.add_argument("--turns", type=int, default=21, help="turns of each side")
    parser.add_argument("--large", action="store_true", help="also 100 million interactions (12 GB of disk)")
    parser.add_argument("--folder", type=Path, help="where the synthetic logs go for the time being")
    parser.add_argument("--no-rows", action="store_true", help="print, add no rows")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    measures = {"batches": measure_batches, "growth": measure_growth, "preparation": measure_preparation}
    rows = [row for part in options.only for row in measures[part](options)]
    if not options.no_rows:
        add(rows)
    report(rows)


if __name__ == "__main__":
    main()
