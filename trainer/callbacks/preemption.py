"""Leaving when asked to: all ranks write a checkpoint of the same step."""

from __future__ import annotations

import signal
from typing import Any

import torch
import torch.distributed as dist

from recloom.trainer.callbacks.callback import Callback
from recloom.trainer.callbacks.checkpoint import Checkpoint
from recloom.trainer.loop import Loop, StepRecord


class Preempted(Exception):
    """A rank got SIGUSR1; raised by every rank behind the same step, when the checkpoint is written."""


class Preemption(Callback):
    """SIGUSR1 to any rank ends the training behind the step under way. Stands behind `checkpoint`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.asked = False
        self.previous: Any = None

    def on_start(self, loop: Loop) -> None:
        self.previous = signal.signal(signal.SIGUSR1, self.ask)

    def ask(self, *_: Any) -> None:
        self.asked = True

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        # The checkpoint of an epoch's last step, where there is one, comes when the epoch is closed.
        closes = self.checkpoint.epochs and loop.stream.epoch > record.epoch
        if not closes and self.any_asked(loop):
            self.leave(loop)

    def on_epoch_end(self, loop: Loop) -> None:
        if self.checkpoint.epochs and self.any_asked(loop):
            self.leave(loop)

    def any_asked(self, loop: Loop) -> bool:
        asked = torch.tensor(int(self.asked), device=loop.engine.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked)

    def leave(self, loop: Loop) -> None:
        if self.checkpoint.saved != loop.step:
            self.checkpoint.save(loop)
        raise Preempted(f"asked to leave, the checkpoint of step {loop.step} is written")

    def close(self) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGUSR1, self.previous)
