"""What the sides of benchmarks/tuning.py share: samples of a shard folder, and what a side writes down.

Shapes: T tokens of a sample.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from recloom.data_shards.shards import ShardReader
from recloom.data_shards.stream import IGNORE

WARM_STEPS = 4  # compiles, fills caches, touches memory first; DeepSpeed learns the order of layers
PARTS = ("forward", "backward", "step")  # of DeepSpeed's engine; the peers' loss is a part of forward


@dataclass(frozen=True)
class Work:
    """What a side is asked to do. rows: packed rows a step of ours; samples: of a step of the peers."""

    model: str
    corpus: str
    out: str
    steps: int
    rows: int
    pack_length: int
    samples: int
    checked: int
    dtype: str
    packed: bool
    liger: bool
    compile: bool

    @classmethod
    def read(cls) -> Work:
        """The JSON that is the last argument."""
        return cls(**json.loads(sys.argv[-1]))


@dataclass(frozen=True)
class Measured:
    """seconds, tokens: of each step behind the first ones, all ranks; padding tokens are not counted.
    padding: share of the positions of these steps. parts: seconds of the last step in the engine's parts,
    and in all else, `other`.
    example_losses: mean negative log-likelihood of the answer of each checked sample, before training.
    """

    seconds: list[float]
    tokens: list[int]
    padding: float
    parts: dict[str, float]
    example_losses: list[float]
    gib_a_rank: float

    def write(self, work: Work) -> None:
        Path(work.out).write_text(json.dumps(asdict(self)))


def samples_of(corpus: str, limit: int | None = None) -> list[dict[str, list[int]]]:
    """Token ids and labels of the shards' samples, prompt tokens without a label."""
    reader = ShardReader(Path(corpus))
    found = []
    for index in range(len(reader) if limit is None else min(limit, len(reader))):
        ids, prompt = reader.ids(index).tolist(), int(reader.num_prompt_N[index])
        found.append({"input_ids": ids, "labels": [IGNORE] * prompt + ids[prompt:]})
    return found


def mean_loss(logits_TV: torch.Tensor, labels_T: torch.Tensor) -> float:
    """Mean over the answer's tokens; position t predicts token t + 1."""
    return torch.nn.functional.cross_entropy(
        logits_TV[:-1].float(), labels_T[1:].to(logits_TV.device), ignore_index=IGNORE
    ).item()


class PartClock:
    """Seconds in the engine's parts of one step; on a GPU it waits thrice in it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.is_on = False

    def watch(self, engine: Any) -> None:
        for part in PARTS:
            setattr(engine, part, self.timed(part, getattr(engine, part)))

    def parts(self, seconds: float) -> dict[str, float]:
        """Of a step that took so many seconds."""
        return {**self.seconds, "other": seconds - sum(self.seconds.values())}

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = now() if self.is_on else 0.0
            result = call(*args, **kwargs)
            if self.is_on:
                self.seconds[part] += now() - begin
            return result

        return run


def now() -> float:
    """Behind all that a GPU was told to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return psutil.Process().memory_info().rss / 2**30


def leave() -> None:
    """End at once: the interpreter's own shutdown aborts now and then under DeepSpeed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
