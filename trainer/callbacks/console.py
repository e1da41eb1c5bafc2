"""One line a step: where training is, how it goes, when it ends."""

from __future__ import annotations

import resource
import time

import torch

from recloom.trainer.callbacks.callback import Callback
from recloom.trainer.loop import Loop, StepRecord


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def memory_gib() -> float:
    """Peak memory of this rank: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Console(Callback):
    """Prints on rank 0 every `every` steps."""

    def __init__(self, label: str, every: int) -> None:
        self.label = label
        self.every = every

    def on_start(self, loop: Loop) -> None:
        self.started, self.first = time.perf_counter(), loop.step
        if loop.rank == 0:
            resumed = f", resuming after step {loop.step}" if loop.step else ""
            print(f"{self.label}: {loop.total_steps} steps on {loop.world_size} ranks{resumed}", flush=True)

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        last = record.step == loop.total_steps
        if loop.rank or not (last or record.step % self.every == 0):
            return
        per_step = (time.perf_counter() - self.started) / (record.step - self.first)
        print(
            f"{self.label}: step {record.step}/{loop.total_steps} | loss {record.loss:.4f} "
            f"| lr {record.learning_rate:.2e} | grad norm {record.gradient_norm:.3f} "
            f"| {record.tokens / record.seconds:,.0f} tokens/s | {memory_gib():.1f} GiB a rank "
            f"| data wait {100 * record.data_seconds / (record.seconds + record.data_seconds):.1f} % "
            f"| ETA {clock(per_step * (loop.total_steps - record.step))}",
            flush=True,
        )
