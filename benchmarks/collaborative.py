"""Our backbones against named peers on one split: training time to equal validation quality, test metrics.

    python benchmarks/collaborative.py setup --peers PEERS
    python benchmarks/collaborative.py measure --model lightgcn --peer recbole --peers PEERS

`setup` makes the peers' own environments in the folder PEERS, outside this repository. `measure` writes our
split to a work folder, trains both sides on it one after the other, each in its own process with the same
number of threads, and adds a row to collaborative.csv. Both sides stop early on validation N@10 over the full
catalogue. The clock runs while the model is made and trained, not while data is read or a model is validated.
Both times are those of the first validation that reaches `share` of the lower of the two best values.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers.protocol import Split

from recloom.data_shards.artifacts import cache_dir
from recloom.data_shards.sources import movielens
from recloom.data_shards.splits import leave_one_out
from recloom.trainer import metrics

HERE = Path(__file__).resolve().parent
ROWS = HERE / "collaborative.csv"
POSITIVE_RATING = 4.0

# environment -> calls of pip; RecBole comes without its dependencies, which name an old ray not needed here
ENVIRONMENTS = {
    "torch": [
        "torch==2.13.0 numpy==1.26.4 scipy==1.15.3 pandas==2.3.3 scikit-learn==1.7.2 numba==0.61.2 "
        "setuptools==80.9.0 colorlog==4.7.2 colorama==0.4.4 "
        "tqdm==4.70.1 pyyaml==6.0.3 tensorboard==2.21.0 tabulate==0.10.0 texttable==1.7.2 psutil==7.2.2",
        "--no-deps recbole==1.2.1",
    ],
    "mf": ["implicit==0.7.3 cornac==3.0.1"],
}
SELFREC, SELFREC_COMMIT = "https://github.com/Coder-Yu/SELFRec", "5b0229423cb1c727e85a704d63e460368c8b9dde"
SELFREC_FOLDERS = ("base", "conf", "data", "model", "util")


@dataclass(frozen=True)
class Peer:
    script: str
    environment: str
    models: tuple[str, ...]


PEERS = {
    "recbole": Peer("recbole_models.py", "torch", ("lightgcn", "sasrec")),
    "selfrec": Peer("selfrec_models.py", "torch", ("lightgcn", "sasrec")),
    "implicit": Peer("implicit_bpr.py", "mf", ("mf",)),
    "cornac": Peer("cornac_bpr.py", "mf", ("mf",)),
}


@dataclass(frozen=True)
class Outcome:
    """One training: curve is (seconds, validation N@10) of every validation, test the means over users."""

    version: str
    settings: dict[str, Any]
    curve: list[tuple[float, float]]
    test: dict[str, float]

    @property
    def best(self) -> float:
        return max(value for _, value in self.curve)

    def seconds_to(self, threshold: float) -> float:
        return next(seconds for seconds, value in self.curve if value >= threshold)


def setup(options: argparse.Namespace) -> None:
    """Make the environments and get SELFRec, which is no package."""
    for name, installs in ENVIRONMENTS.items():
        folder = options.peers / name
        print(f"setup: {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        for packages in installs:
            subprocess.run([folder / "bin/python", "-m", "pip", "install", *packages.split()], check=True)
    folder = options.peers / "SELFRec"
    if not folder.exists():
        clone = ["git", "clone", "--quiet", "--no-checkout", "--filter=blob:none", options.selfrec]
        subprocess.run([*clone, str(folder)], check=True)
    checkout = ["git", "-C", folder, "checkout", "--quiet", SELFREC_COMMIT]
    subprocess.run(["git", "-C", folder, "update-ref", "--no-deref", "HEAD", SELFREC_COMMIT], check=True)
    subprocess.run([*checkout, "--", *SELFREC_FOLDERS], check=True)


def export_split(variant: str, path: str | None, target: Path) -> None:
    """Write the top-k split of the product as arrays: positives only, leave-one-out by time."""
    tables = movielens.load(
        movielens.Settings.model_validate({"variant": variant, "path": path}), cache_dir()
    )
    split = leave_one_out(tables, POSITIVE_RATING).topk
    parts = {"train": split.train, "valid": split.valid, "test": split.test}
    columns: dict[str, Any] = {f"{name}_user": part.user_N for name, part in parts.items()}
    columns |= {f"{name}_item": part.item_N for name, part in parts.items()}
    columns = {name: column.astype(np.int64) for name, column in columns.items()}
    sizes = np.array([tables.num_users, tables.num_items])
    np.savez(target, sizes=sizes, **columns)


def train(python: Path, script: str, out: Path, threads: int, arguments: list[str]) -> None:
    """One training in a process of its own."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "run.json").unlink(missing_ok=True)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    own = ["--out", str(out), "--threads", str(threads)]
    command = [str(python), str(HERE / "peers" / script), *own, *arguments]
    subprocess.run(command, check=True, env=environment)


def read_outcome(out: Path, split: Split) -> Outcome:
    """What a training left; its scores are judged here, by the product's metrics."""
    described = json.loads((out / "run.json").read_text())
    points = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    curve = [(point["seconds"], point["N@10"]) for point in points]
    with np.load(out / "scores.npz") as scores:
        found = {part: test_metrics(scores[part], split, part) for part in ("valid", "test")}
    outcome = Outcome(described["version"], described["settings"], curve, found["test"])
    if abs(found["valid"]["N@10"] - outcome.best) > 1e-4:
        raise RuntimeError(f"{out}: exported scores give {found['valid']['N@10']}, the curve {outcome.best}.")
    return outcome


def test_metrics(scores_BI: np.ndarray, split: Split, part: str) -> dict[str, float]:
    """H@k, N@k and MRR over the full catalogue without seen items; ties count against the target."""
    targets_B = split.targets_of[part]
    ranks_B = np.empty(len(targets_B))
    for row, (scores_I, seen) in enumerate(zip(scores_BI, split.histories(part), strict=True)):
        unseen_I = np.where(np.isin(np.arange(split.num_items), seen), -np.inf, scores_I)
        target = unseen_I[targets_B[row]]
        not_below = np.count_nonzero(~(unseen_I < target) & (unseen_I != -np.inf))
        ranks_B[row] = np.inf if target == -np.inf else not_below
    return metrics.means(metrics.one_target_metrics(ranks_B))


def settings_grid(pairs: list[str]) -> list[dict[str, Any]]:
    """["a=1,2", "b=3"] as [{"a": 1, "b": 3}, {"a": 2, "b": 3}]; values are JSON, else text."""
    axes = {name: [parsed(value) for value in values.split(",")] for name, values in map(split_pair, pairs)}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def split_pair(pair: str) -> tuple[str, str]:
    name, equals, values = pair.partition("=")
    if not (name and equals and values):
        sys.exit(f"--setting {pair}: expected NAME=VALUE or NAME=VALUE,VALUE.")
    return name, values


def parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


class Measurement:
    """Trainings of both sides on one split, in one work folder."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.split_path = work / "split.npz"
        export_split(options.data, options.path, self.split_path)
        self.split = Split.load(self.split_path)

    def outcome(self, side: str, settings: dict[str, Any], seed: int, name: str) -> Outcome:
        """Train one side ("ours" or a peer's name) and read what it left."""
        options, out = self.options, self.work / name
        arguments = ["--split", self.split_path, "--model", options.model, "--seed", str(seed)]
        arguments += ["--settings", json.dumps(settings)]
        if side == "ours":
            python, script = Path(sys.executable), "ours.py"
        else:
            peer = PEERS[side]
            python, script = options.peers / peer.environment / "bin/python", peer.script
            arguments += ["--max-seconds", str(options.max_seconds), "--patience", str(options.patience)]
            arguments += ["--source", options.peers / "SELFRec"]
        train(python, script, out, options.threads, arguments)
        return read_outcome(out, self.split)

    def choose_settings(self) -> dict[str, Any]:
        """The peer's setting with the best validation value, if there are several."""
        grid = settings_grid(self.options.setting)
        if len(grid) == 1:
            return grid[0]
        tried = []
        for number, settings in enumerate(grid):
            outcome = self.outcome(self.options.peer, settings, seed=0, name=f"grid-{number}")
            tried.append(outcome.best)
            print(f"grid {number + 1}/{len(grid)}: {settings} gives {outcome.best:.4f}", flush=True)
        return grid[int(np.argmax(tried))]

    def pairs(self) -> list[tuple[Outcome, Outcome]]:
        """(ours, peer) for every seed, one after the other."""
        ours, peer = settings_grid(self.options.ours)[0], self.choose_settings()
        return [
            (
                self.outcome("ours", ours, seed, f"ours-{seed}"),
                self.outcome(self.options.peer, peer, seed, f"{self.options.peer}-{seed}"),
            )
            for seed in range(self.options.seeds)
        ]


def make_row(options: argparse.Namespace, pairs: list[tuple[Outcome, Outcome]]) -> dict[str, Any]:
    """The row of the table: means over the seeds, ratio = ours / peer of the mean times."""
    thresholds = [options.share * min(ours.best, peer.best) for ours, peer in pairs]
    seconds_S2 = np.array(
        [
            [side.seconds_to(threshold) for side in pair]
            for pair, threshold in zip(pairs, thresholds, strict=True)
        ]
    )
    seconds = seconds_S2.mean(axis=0)
    row: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "model": options.model,
        "peer": options.peer,
        "peer version": pairs[0][1].version,
        "data": f"ML-{options.data.upper()}",
        "threads": options.threads,
        "cores": os.cpu_count(),
        "seeds": options.seeds,
        "valid N@10 reached": f"{np.mean(thresholds):.4f}",
        "seconds ours": f"{seconds[0]:.2f}",
        "seconds peer": f"{seconds[1]:.2f}",
        "ratio": f"{seconds[0] / seconds[1]:.3f}",
    }
    for side, outcomes in zip(("ours", "peer"), zip(*pairs, strict=True), strict=True):
        row[f"best valid N@10 {side}"] = f"{np.mean([outcome.best for outcome in outcomes]):.4f}"
        for metric in ("H@10", "N@10", "MRR"):
            row[f"test {metric} {side}"] = f"{np.mean([outcome.test[metric] for outcome in outcomes]):.4f}"
    row |= {f"settings {side}": json.dumps(pairs[0][n].settings) for n, side in enumerate(("ours", "peer"))}
    return {**row, "command": command_line(options)}


def command_line(options: argparse.Namespace) -> str:
    """This command, with the folders of this machine replaced by their names."""
    words = ["benchmarks/collaborative.py", "measure", "--model", options.model, "--peer", options.peer]
    words += ["--peers", "PEERS", "--data", options.data, *(["--path", "PATH"] if options.path else [])]
    for name in ("threads", "seeds", "share", "max_seconds", "patience"):
        words += [f"--{name.replace('_', '-')}", f"{getattr(options, name):g}"]
    for name in ("ours", "setting"):
        words += [f"--{name}", *getattr(options, name)] if getattr(options, name) else []
    return shlex.join(["python", *words])


def add_row(row: dict[str, Any]) -> None:
    fresh = not ROWS.exists()
    with open(ROWS, "a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)


@contextmanager
def work_folder(folder: Path | None) -> Iterator[Path]:
    """`folder`, made if need be, or a temporary one."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def measure(options: argparse.Namespace) -> None:
    if options.model not in PEERS[options.peer].models:
        sys.exit(f"--peer {options.peer} has no {options.model}: {', '.join(PEERS[options.peer].models)}.")
    with work_folder(options.work) as work:
        row = make_row(options, Measurement(options, work).pairs())
    for name, value in row.items():
        print(f"{name:>20}  {value}")
    if not options.no_row:
        add_row(row)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("setup", help="make the peers' environments (2 GB)")
    make.set_defaults(run=setup)
    make.add_argument("--selfrec", default=SELFREC, help="where to clone SELFRec from (address or folder)")
    run = commands.add_parser("measure", help="train both sides and add a row")
    run.set_defaults(run=measure)
    for command in (make, run):
        command.add_argument("--peers", type=Path, required=True, help="folder of the peers' environments")
    run.add_argument("--model", required=True, choices=sorted({m for p in PEERS.values() for m in p.models}))
    run.add_argument("--peer", required=True, choices=sorted(PEERS))
    run.add_argument("--data", choices=("100k", "1m"), default="100k", help="which MovieLens")
    run.add_argument("--path", help="folder with GroupLens' files; 100k can do without")
    run.add_argument("--work", type=Path, help="keep curves and scores in this folder")
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--seeds", type=int, default=1)
    run.add_argument(
        "--share", type=float, default=0.98, help="of the lower best value, to be reached by both"
    )
    run.add_argument("--max-seconds", type=float, default=4 * 3600, help="of the peer's training")
    run.add_argument("--patience", type=int, default=100, help="the peer's validations without a better one")
    setting: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "NAME=VALUE"}
    run.add_argument("--setting", help="the peer's; several values a name: best on validation", **setting)
    run.add_argument("--ours", help="settings of our backbone other than its defaults", **setting)
    run.add_argument("--no-row", action="store_true", help="print the row without adding it")
    options = parser.parse_args()
    options.peers = options.peers.resolve()
    return options


def main() -> None:
    options = parse_options()
    options.run(options)


if __name__ == "__main__":
    main()
