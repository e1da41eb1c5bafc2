"""What both sides of a comparison share: the split, the clock, the metric and the files they leave.

Runs in every peer's environment, so it needs nothing but NumPy. Shapes: U users, B users of a part, I items.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Scores = Callable[[str], np.ndarray]


class Finished(Exception):
    """Ends a training loop that is not ours: `patience` validations without a better one, or no time left."""


@dataclass(frozen=True)
class Split:
    """`part` is "valid" or "test"; row b of everything belongs to users(part)[b]."""

    num_users: int
    num_items: int
    sequences: list[np.ndarray]
    users_of: dict[str, np.ndarray]
    targets_of: dict[str, np.ndarray]

    @classmethod
    def load(cls, path: Path) -> Split:
        with np.load(path) as file:
            num_users, num_items = (int(number) for number in file["sizes"])
            ends_U = np.searchsorted(file["train_user"], np.arange(1, num_users))
            sequences = np.split(file["train_item"], ends_U)
            users = {part: file[f"{part}_user"] for part in ("valid", "test")}
            targets = {part: file[f"{part}_item"] for part in ("valid", "test")}
        return cls(num_users, num_items, sequences, users, targets)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The training interactions as (users, items), by user and then time."""
        users = np.repeat(np.arange(self.num_users), [len(items) for items in self.sequences])
        return users, np.concatenate(self.sequences)

    def histories(self, part: str) -> list[np.ndarray]:
        """The items shown to a sequential model and masked; at test they include the validation item."""
        if part == "valid":
            return [self.sequences[user] for user in self.users_of[part]]
        valid_of = dict(zip(self.users_of["valid"].tolist(), self.targets_of["valid"].tolist(), strict=True))
        return [
            np.append(self.sequences[user], valid_of[user]) if user in valid_of else self.sequences[user]
            for user in self.users_of[part].tolist()
        ]

    def ndcg_at_10(self, scores_BI: np.ndarray, part: str) -> float:
        """Full catalogue, seen items masked, ties and nan against the target."""
        rows, targets_B = np.arange(len(scores_BI)), self.targets_of[part]
        histories = self.histories(part)
        masked_BI = scores_BI.copy()
        masked_BI[np.repeat(rows, [len(items) for items in histories]), np.concatenate(histories)] = -np.inf
        target_B1 = masked_BI[rows, targets_B][:, None]
        ranks_B = (~(masked_BI < target_B1) & (masked_BI != -np.inf)).sum(1)
        missed_B = (ranks_B > 10) | (target_B1[:, 0] == -np.inf)
        return float(np.where(missed_B, 0.0, 1 / np.log2(np.maximum(ranks_B, 1) + 1)).mean())


class Run:
    """One training. The clock stands still during validation; the best validation's scores are kept."""

    def __init__(self, job: argparse.Namespace, split: Split, settings: dict[str, Any]) -> None:
        self.job, self.split, self.settings = job, split, settings
        self.best, self.since_best, self.count = -1.0, 0, 0
        self.best_scores: dict[str, np.ndarray] = {}
        self.curve = job.out / "curve.jsonl"
        self.curve.write_text("")
        self.screen = sys.stdout
        self.paused, self.start = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start - self.paused

    @contextmanager
    def pause(self) -> Any:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.paused += time.perf_counter() - begin

    def validate(self, scores: Scores) -> float:
        """One point of the curve from `scores(part)`, (B, I). Raises Finished when it is time to stop."""
        seconds = self.seconds
        with self.pause():
            scores_BI = scores("valid")
            value = self.split.ndcg_at_10(scores_BI, "valid")
            self.record(seconds, value)
            if self.since_best == 0:
                self.best_scores = {"valid": scores_BI, "test": scores("test")}
        if self.since_best >= self.job.patience or seconds > self.job.max_seconds:
            raise Finished
        return value

    def record(self, seconds: float, value: float) -> None:
        self.count += 1
        self.since_best = 0 if value > self.best else self.since_best + 1
        self.best = max(value, self.best)
        with self.curve.open("a") as file:
            file.write(json.dumps({"seconds": round(seconds, 3), "N@10": value}) + "\n")
        where = f"{Path(sys.argv[0]).stem} {self.job.model}, validation {self.count}"
        print(
            f"{where}: {seconds:.1f} s, N@10 {value:.4f}, best {self.best:.4f}", file=self.screen, flush=True
        )

    def finish(self, version: str) -> None:
        """Write scores and description, the latter last: its existence means a complete run."""
        scores: dict[str, Any] = dict(self.best_scores)
        np.savez(self.job.out / "scores.npz", **scores)
        described = {"version": version, "settings": self.settings, "best": self.best}
        (self.job.out / "run.json").write_text(json.dumps(described))


def read_job(defaults: dict[str, dict[str, Any]]) -> tuple[argparse.Namespace, Split, dict[str, Any]]:
    """The command line of one training, its split, and its settings: `defaults[model]` with the changes."""
    parser = argparse.ArgumentParser(description="One training for benchmarks/collaborative.py.")
    parser.add_argument("--split", type=Path, required=True, help="split.npz of collaborative.py")
    parser.add_argument("--out", type=Path, required=True, help="existing folder for curve and scores")
    parser.add_argument("--model", choices=sorted(defaults), required=True)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON, changes of the defaults")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=int, default=20, help="validations without a better one")
    parser.add_argument("--max-seconds", type=float, default=float("inf"), help="of training")
    parser.add_argument("--source", type=Path, help="folder with the peer's code, where it is no package")
    job = parser.parse_args()
    job.out = job.out.resolve()
    sys.argv[1:] = []  # RecBole reads it
    return job, Split.load(job.split), {**defaults[job.model], **job.settings}


@contextmanager
def scratch_folder() -> Any:
    """Work in a temporary folder: some peers write logs where they stand."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def padded(histories: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """The last `length` entries of each, zeros on the right, and their number (at least 1)."""
    table = np.zeros((len(histories), length), dtype=np.int64)
    for row, items in zip(table, histories, strict=True):
        kept = items[-length:]
        row[: len(kept)] = kept
    return table, np.clip([len(items) for items in histories], 1, length)


def chunks(count: int, size: int = 1024) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
