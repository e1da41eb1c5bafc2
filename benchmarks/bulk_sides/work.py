"""What the sides of benchmarks/bulk.py share: the questions, and what a side writes down.

Shapes: N questions, L labels.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

WARM_USERS = 1  # compiles, fills allocators


@dataclass(frozen=True)
class Work:
    """What a side is asked: the next token's log-probability of each label behind each prompt.

    users: a list of prompts (token ids) a user, which begin alike. threads: of the CPU. engines: processes
    that share the side's users, of which this is one; `out` lies in a folder that all of them see.
    """

    model: str
    users: list[list[list[int]]]
    labels: list[int]
    out: str
    dtype: str
    threads: int
    longest: int
    engines: int

    @classmethod
    def read(cls) -> Work:
        """The JSON file that is the last argument; also sets how vLLM and OpenMP run here."""
        work = cls(**json.loads(Path(sys.argv[-1]).read_text()))
        os.environ["OMP_NUM_THREADS"] = str(work.threads)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # vLLM compiles its logprobs otherwise, for seconds
        return work

    def begin(self) -> float:
        """The time at which all engines of the side are warm: they are timed side by side."""
        out = Path(self.out)
        out.with_suffix(".warm").touch()
        while len(list(out.parent.glob("*.warm"))) < self.engines:
            time.sleep(0.001)
        return time.perf_counter()

    @property
    def warm(self) -> list[list[int]]:
        return [prompt for user in self.users[:WARM_USERS] for prompt in user]

    @property
    def prompts(self) -> list[list[int]]:
        """The ones that are timed, user by user."""
        return [prompt for user in self.users[WARM_USERS:] for prompt in user]


@dataclass(frozen=True)
class Measured:
    """seconds of all timed prompts; computed: tokens that went through the model, where the side knows;
    logprobs: (N, L) of the timed prompts in their order; start_seconds: until the first answer could come.
    """

    seconds: float
    start_seconds: float
    computed: int
    logprobs: list[list[float]]

    def write(self, work: Work) -> None:
        Path(work.out).write_text(json.dumps(asdict(self)))


def leave() -> None:
    """End at once: the engine's own shutdown could only hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def as_lists(logprobs_NL: np.ndarray) -> list[list[float]]:
    return np.round(logprobs_NL.astype(float), 5).tolist()
