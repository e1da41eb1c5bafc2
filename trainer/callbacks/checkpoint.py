"""Checkpoints every N steps."""

from __future__ import annotations

from pathlib import Path

from recloom.trainer.callbacks.callback import Callback
from recloom.trainer.loop import Loop, StepRecord


class Checkpoint(Callback):
    """Weights, optimizer and stream position, so that a killed run goes on where it was."""

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        last = record.step == loop.total_steps
        if self.every and record.step % self.every == 0 and not last:
            loop.engine.save(self.folder, record.step, loop.state(), self.keep)
