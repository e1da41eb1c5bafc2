"""Validation loss every N steps and at the end."""

from __future__ import annotations

import torch

from recloom.data_shards.stream import PackedStream
from recloom.trainer.callbacks.callback import Callback
from recloom.trainer.callbacks.metrics_log import MetricsLog
from recloom.trainer.loop import Loop, StepRecord
from recloom.trainer.parallel_layout import sum_over_data


class Evaluation(Callback):
    """Mean loss of the validation samples' units, computed by all ranks together."""

    def __init__(self, label: str, stream: PackedStream, every: int, log: MetricsLog) -> None:
        self.label = label
        self.stream = stream
        self.every = every
        self.log = log

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        last = record.step == loop.total_steps
        if not last and (self.every == 0 or record.step % self.every):
            return
        loss = self.validation_loss(loop)
        self.log.write({"step": record.step, "validation_loss": loss})
        if loop.rank == 0:
            print(f"{self.label}: step {record.step} | validation loss {loss:.4f}", flush=True)

    def validation_loss(self, loop: Loop) -> float:
        loop.engine.train(False)
        self.stream.load_state({"epoch": 0, "step": 0, "window": 0, "row": 0})
        total, units = torch.zeros((), dtype=torch.float64, device=loop.engine.device), 0
        with torch.no_grad():
            for batch in self.stream:
                units += loop.objective.units(batch)
                for row in batch.rows:
                    total += loop.objective.loss(loop.engine, row).double()
        loop.engine.train(True)
        return sum_over_data(total, loop.layout).item() / units
