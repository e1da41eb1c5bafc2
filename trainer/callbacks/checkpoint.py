"""Checkpoints every N steps."""

from __future__ import annotations

from pathlib import Path

from recloom.trainer.callbacks.callback import Callback
from recloom.trainer.loop import Loop, StepRecord


class Checkpoint(Callback):
    """Weights, optimizer and stream position, so that a killed run goes on where it was.

    epochs: also behind every epoch, when the callbacks before have seen its end. Its last step then has no
    checkpoint of its own: a second one of that step would be written over the one that is in force.
    """

    def __init__(self, folder: Path, every: int, keep: int, epochs: bool = False) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.epochs = epochs
        self.saved = 0  # the step of the last checkpoint that this process wrote

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        ends_epoch = loop.stream.epoch > record.epoch
        skipped = ends_epoch if self.epochs else record.step == loop.total_steps
        if self.every and record.step % self.every == 0 and not skipped:
            self.save(loop)

    def on_epoch_end(self, loop: Loop) -> None:
        if self.epochs:
            self.save(loop)

    def save(self, loop: Loop) -> None:
        loop.engine.save(self.folder, loop.step, loop.state(), self.keep)
        self.saved = loop.step
