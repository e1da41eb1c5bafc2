"""Scoring a user's candidates with one token each: RecLoom's bulk engine against vLLM and Hugging Face.

    python benchmarks/bulk.py                       SmolLM2-135M on all cores, ML-100K's rating questions
    python benchmarks/bulk.py --candidates 100 --users 4
    python benchmarks/bulk.py --model DIR --users 200   another model, on the GPU that is there
    python benchmarks/bulk.py --prompts.history_items 10
    python benchmarks/bulk.py --config configs/llama4rec/corpus_bookcrossing.yaml --data.path DATA

The questions are Llama4Rec's pointwise ones: how would this user rate each of 20 candidates, told by the
log-probabilities of the labels. All sides answer the same token ids on the same cores, take turns in
processes of their own, and must agree on the log-probabilities. With `2 engines` two processes, a thread
each, share the users (`bulk.engines: 2`). The least that can be computed is each distinct beginning once (the
prefix tree); `saving` is the share of that saving that a side reached. Ratios come last, and a row a side
goes to bulk.csv.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from csv_rows import append, command_line, machine

from recloom.data_shards.artifacts import cache_dir
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.launcher.bulk_environment import worker_env
from recloom.launcher.overrides import HELP, split_overrides
from recloom.trainer.config_io import read_config
from recloom.trainer.models import load_tokenizer, resolve_model
from recloom.trainer.preparation import prepare_tables
from recloom.trainer.stages import Run
from recloom.trainer.systems.llama4rec.prompts import make_prompter
from recloom.trainer.systems.llama4rec.rating_tokens import label_tree, rating_labels
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig

HERE = Path(__file__).resolve().parent
ROWS = HERE / "bulk.csv"
CONFIG = HERE.parent / "configs" / "llama4rec_quickstart.yaml"
DEFAULTS = [("prompts.history_items", "20")]  # the paper's; the quickstart's are shorter
TOLERANCE = {"bfloat16": 0.35, "float32": 1e-3}  # of a label's log-probability


@dataclass(frozen=True)
class Side:
    """A script of bulk_sides/. engines: processes that share the cores and the users."""

    name: str
    script: str
    mode: str = ""
    engines: int = 1

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("RecLoom")


def sides_of(threads: int) -> list[Side]:
    """On a CPU also the fastest of ours, and the peer that the target names, with an engine a thread."""
    single = [
        Side("RecLoom, scoring: vllm", "ours_vllm.py"),
        Side("RecLoom, scoring: one_pass", "ours_one_pass.py"),
        Side("vLLM, a call a candidate", "vllm_plain.py", "call"),
        Side("vLLM, one call", "vllm_plain.py", "all"),
        Side("Hugging Face, batches", "hf.py"),
    ]
    if threads == 1 or torch.cuda.is_available():
        return single
    many = [replace(side, name=f"{side.name}, {threads} engines", engines=threads) for side in single[1:3]]
    return [*single[:2], many[0], single[2], many[1], *single[3:]]


@dataclass(frozen=True)
class Questions:
    """users: a list of prompts (token ids) a user; labels: the ids that are scored."""

    users: list[list[list[int]]]
    labels: list[int]

    @property
    def timed(self) -> list[list[int]]:
        return [prompt for user in self.users[1:] for prompt in user]


def read_settings(path: Path | None, overrides: list[tuple[str, str]]) -> Llama4RecConfig:
    """A config's data and prompts. Raises UserError for a config of another system."""
    config = read_config(path or CONFIG, overrides if path else [*DEFAULTS, *overrides])
    if not isinstance(config, Llama4RecConfig):
        raise UserError(f"{path}: system is {config.system}: give a config of llama4rec.")
    return config


def make_questions(
    config: Llama4RecConfig, folder: Path, model: str, users: int, candidates: int, seed: int
) -> Questions:
    """Pointwise questions about drawn users and candidates that they have not rated, plain prompts; one user
    more to warm up."""
    tables, splits = prepare_tables(Run(config, folder, cache_dir()))
    train = splits.rating.train
    prompter = make_prompter(config, tables.titles, tables.num_users, "rating", train, train, None, None)
    renderer = Renderer(load_tokenizer(model))
    rng = np.random.default_rng(seed)
    found = []
    for user in rng.choice(tables.num_users, users + 1, replace=False).tolist():
        unseen = np.setdiff1d(np.arange(tables.num_items), train.item_N[train.user_N == user])
        items = rng.choice(unseen, candidates, replace=False).tolist()
        samples = [prompter.rating(user, item, 0.0, None) for item in items]
        found.append([list(renderer.render_prompt(sample.prompt)) for sample in samples])
    return Questions(found, list(label_tree(renderer, rating_labels(tables)).first_ids))


Turns = dict[Side, list[dict[str, Any]]]  # what each turn of a side measured


def tree_tokens(prompts: list[list[int]]) -> int:
    """Nodes of the prompts' prefix tree: what has to be computed at least."""
    ordered = sorted(prompts)
    total = len(ordered[0])
    for before, prompt in zip(ordered, ordered[1:], strict=False):
        same = next(
            (n for n, pair in enumerate(zip(before, prompt, strict=False)) if pair[0] != pair[1]), None
        )
        total += len(prompt) - (min(len(before), len(prompt)) if same is None else same)
    return total


def measure(side: Side, work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One turn of one side, in processes of its own; ours in the environment of a pass's workers."""
    warm, *users = work["users"]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        engines = [
            Engine(side, work | {"users": [warm, *users[n :: side.engines]]}, Path(name) / f"{n}.json")
            for n in range(side.engines)
        ]
        found = [engine.measured() for engine in engines]
    of_user = [iter(one["logprobs"]) for one in found]
    logprobs = [next(of_user[n % side.engines]) for n, user in enumerate(users) for _ in user]
    return {
        "seconds": max(one["seconds"] for one in found),
        "start_seconds": max(one["start_seconds"] for one in found),
        "computed": sum(one["computed"] for one in found),
        "logprobs": logprobs,
    }


class Engine:
    """A process of a side, started at once."""

    def __init__(self, side: Side, work: dict[str, Any], out: Path) -> None:
        self.side, self.out, self.log = side, out, out.with_suffix(".log")
        threads = work["threads"] // side.engines
        told = work | {"threads": threads, "engines": side.engines, "out": str(out)}
        asked = out.with_suffix(".asked")
        asked.write_text(json.dumps(told))
        command = [sys.executable, str(HERE / "bulk_sides" / side.script), side.mode, str(asked)]
        env = worker_env(threads) if side.is_ours else None
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(command, env=env, stdout=stream, stderr=subprocess.STDOUT)

    def measured(self) -> dict[str, Any]:
        self.process.wait()
        if not self.out.is_file():
            sys.exit(f"{self.side.name} did not finish:\n{self.log.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(self.out.read_text())
        return found


def check(turns: Turns, tolerance: float) -> float:
    """The largest difference of a log-probability between two sides; above tolerance all ends."""
    first, *others = (np.array(found[0]["logprobs"]) for found in turns.values())
    worst = max(float(np.abs(first - other).max()) for other in others)
    if worst > tolerance:
        sys.exit(f"The sides do not compute the same: log-probabilities differ by {worst:.3f}.")
    return worst


def rows_of(
    turns: Turns, questions: Questions, options: argparse.Namespace, worst: float
) -> list[dict[str, Any]]:
    count, total = len(questions.timed), sum(map(len, questions.timed))
    optimum = total - tree_tokens(questions.timed)
    rates = {side: [count / turn["seconds"] for turn in found] for side, found in turns.items()}
    best = max(statistics.median(rates[side]) for side in turns if side.is_ours)
    return [
        {
            "date": datetime.date.today().isoformat(),
            "side": side.name,
            "model": options.model,
            "dtype": options.dtype,
            "users": options.users,
            "candidates": options.candidates,
            "tokens_a_prompt": round(total / count),
            "items_s": round(statistics.median(rates[side]), 2),
            "items_s_turns": " ".join(f"{rate:.2f}" for rate in rates[side]),
            "users_s": round(statistics.median(rates[side]) / options.candidates, 3),
            "start_s": round(statistics.median(turn["start_seconds"] for turn in found), 1),
            "ours_is_faster": round(best / statistics.median(rates[side]), 2),
            "saving": round((total - found[0]["computed"]) / optimum, 3),
            "largest_difference": f"{worst:.2f}",
            "threads": options.threads,
            "machine": machine(),
            "torch": torch.__version__,
            "command": command_line(),
        }
        for side, found in turns.items()
    ]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], epilog=HELP)
    made.add_argument(
        "--config", type=Path, help="of llama4rec, whose data and prompts to take; the quickstart's"
    )
    made.add_argument("--model", default="smollm2-135m-instruct", help="a name, or a Hugging Face folder")
    made.add_argument("--dtype", default="bfloat16", choices=sorted(TOLERANCE))
    made.add_argument("--users", type=int, default=8, help="timed users")
    made.add_argument("--candidates", type=int, default=20, help="questions a user")
    made.add_argument("--turns", type=int, default=2, help="turns of each side")
    cores = len(os.sched_getaffinity(0))
    made.add_argument("--threads", type=int, default=cores, help="of a CPU, for every side")
    made.add_argument("--seed", type=int, default=0, help="of the draw of users and candidates")
    made.add_argument("--no-row", action="store_true", help="print only")
    return made


def main() -> None:
    try:
        options, overrides = split_overrides(parser(), sys.argv[1:])
        compare(options, read_settings(options.config, overrides))
    except UserError as error:
        sys.exit(str(error))


def compare(options: argparse.Namespace, config: Llama4RecConfig) -> None:
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    turns: Turns = {side: [] for side in sides_of(options.threads)}
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), resolve_model(options.model, cache_dir())
        questions = make_questions(config, folder, model, options.users, options.candidates, options.seed)
        longest = max(len(prompt) for user in questions.users for prompt in user)
        work = {
            "model": model,
            "users": questions.users,
            "labels": questions.labels,
            "dtype": options.dtype,
            "threads": options.threads,
            "longest": longest + 1,
        }
        for turn in range(options.turns):
            for side, found in turns.items():
                found.append(measure(side, work, folder))
                rate = len(questions.timed) / found[-1]["seconds"]
                print(f"turn {turn + 1}, {side.name}: {rate:,.1f} items/s", file=sys.stderr, flush=True)
    worst = check(turns, TOLERANCE[options.dtype])
    rows = rows_of(turns, questions, options, worst)
    if not options.no_row:
        append(ROWS, rows)
    print(f"log-probabilities of {len(questions.timed)} questions agree within {worst:.2f}")
    for row in rows:
        speed = f"{row['items_s']:8.1f} items/s {row['users_s']:7.2f} users/s, start {row['start_s']} s"
        print(f"{row['side']:<37}{speed}, saving {row['saving']:.3f} of the optimum")
    for side, row in zip(turns, rows, strict=True):
        if not side.is_ours:
            print(f"the fastest of ours against {side.name}: {row['ours_is_faster']}")


if __name__ == "__main__":
    main()
