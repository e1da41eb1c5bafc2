"""The training loop: batches in, optimizer steps out; everything else is a callback."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recloom.data_shards.errors import UserError
from recloom.data_shards.stream import PackedStream, StepBatch
from recloom.trainer.config import TrainingBlock
from recloom.trainer.loss import Objective
from recloom.trainer.parallel_layout import sum_over_data

if TYPE_CHECKING:
    from recloom.trainer.callbacks.callback import Callback
    from recloom.trainer.engine import Engine


class NonFiniteLoss(UserError):
    """The loss is nan or infinite; raised by every rank before the weights are touched."""


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step left: loss is the mean over the step's units of all ranks.

    told: what the objective says beside.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    samples: int
    seconds: float
    data_seconds: float
    told: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        row = asdict(self)
        told = row.pop("told")
        return {**row, **told}


def learning_rate(step: int, total: int, training: TrainingBlock) -> float:
    """Linear warm-up, then cosine to zero, or the peak throughout; `step` counts from 0."""
    peak, warmup = training.learning_rate, min(training.warmup_steps, total)
    if step < warmup:
        return peak * (step + 1) / warmup
    if training.schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


class Loop:
    """Runs `training.epochs` epochs of a stream through an engine.

    The loss of a step is the mean over all its units (answer tokens, users), whatever rank or row holds
    them, so it does not depend on the number of ranks. What is drawn for a row (dropout) depends on the
    seed, the step and the row alone.
    """

    def __init__(
        self,
        engine: Engine,
        stream: PackedStream,
        training: TrainingBlock,
        objective: Objective,
        callbacks: Sequence[Callback],
    ) -> None:
        self.engine = engine
        self.stream = stream
        self.training = training
        self.objective = objective
        self.callbacks = callbacks
        self.step = 0
        self.closed = 0  # epochs whose end the callbacks have seen
        self.layout = engine.layout
        self.rank, self.world_size = self.layout.rank, self.layout.world_size
        self.total_steps = sum(stream.num_steps(epoch) for epoch in range(training.epochs))

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "closed": self.closed, "stream": self.stream.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.stream.load_state(state["stream"])
        # A checkpoint of an earlier version does not count: its callbacks had no end of an epoch to see.
        self.step, self.closed = state["step"], state.get("closed", self.stream.epoch)

    def run(self) -> None:
        try:
            for callback in self.callbacks:
                callback.on_start(self)
            self.close_epochs()
            while self.stream.epoch < self.training.epochs:
                for callback in self.callbacks:
                    callback.on_epoch(self)
                self.run_epoch()
                self.close_epochs()
            for callback in self.callbacks:
                callback.on_end(self)
        finally:
            for callback in self.callbacks:
                callback.close()

    def close_epochs(self) -> None:
        """Tell the callbacks of an epoch that has ended; a start that was cut off there does it again."""
        while self.closed < self.stream.epoch:
            self.closed += 1
            for callback in self.callbacks:
                callback.on_epoch_end(self)

    def run_epoch(self) -> None:
        """The rest of the stream's current epoch."""
        waiting = time.perf_counter()
        for batch in self.stream:
            start = time.perf_counter()
            record = self.train_step(batch, start, start - waiting)
            self.step += 1
            for callback in self.callbacks:
                callback.on_step(self, record)
            waiting = time.perf_counter()

    def train_step(self, batch: StepBatch, start: float, data_seconds: float) -> StepRecord:
        """Forward and backward of this rank's rows, a check, one update."""
        rate = learning_rate(self.step, self.total_steps, self.training)
        # DeepSpeed takes the mean over ranks and micro-steps; this factor turns it into a sum of
        # losses over the step's units.
        units = self.objective.units(batch)
        scale = self.training.rows_per_step / units
        total = torch.zeros((), dtype=torch.float64)
        for position, row in enumerate(batch.rows):
            torch.manual_seed(self.row_seed(position))
            loss = self.objective.loss(self.engine, row)
            total += loss.detach().double().cpu()
            if position + 1 == len(batch.rows):
                total = self.check_finite(total, batch)
            self.engine.backward(loss * scale)
            self.engine.step(rate)
        return StepRecord(
            step=self.step + 1,
            epoch=batch.epoch,
            loss=total.item() / units,
            learning_rate=rate,
            gradient_norm=self.engine.gradient_norm(),
            tokens=self.count_tokens(batch),
            samples=len(batch.sample_ids),
            seconds=time.perf_counter() - start,
            data_seconds=data_seconds,
            told=self.objective.told(),
        )

    def row_seed(self, position: int) -> int:
        """Of a row of this rank in the step to come, the same whatever the number of ranks; tensor-parallel
        ranks draw the same, so that what they all hold whole drops out alike."""
        layout = self.layout
        row = self.step * self.training.rows_per_step + position * layout.data_size + layout.data_rank
        return int(np.random.SeedSequence([self.stream.seed, row]).generate_state(1, np.uint64)[0] >> 1)

    def check_finite(self, total: torch.Tensor, batch: StepBatch) -> torch.Tensor:
        """The loss summed over ranks; raises NonFiniteLoss on every rank, before the update."""
        total = sum_over_data(total.to(self.engine.device), self.layout)
        if not torch.isfinite(total):
            raise NonFiniteLoss(
                f"step {self.step + 1}: the loss is {total.item()}, the weights were not touched. "
                f"Samples of the step: {batch.sample_ids}. Lower training.learning_rate, or look at "
                "these samples with `recloom inspect`."
            )
        return total.cpu()

    def count_tokens(self, batch: StepBatch) -> int:
        lengths = self.stream.lengths_of(batch.sample_ids)
        return int(lengths.sum())
