"""The steps of A-LLMRec's stage 1, with checkpoints from which a killed run ends the same.

Shapes: B sequences of a step, L the most targets of one, N targets of a step, I items, D width of the
recommender, W of the text embeddings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from recloom.data_shards.artifacts import atomic_write_text
from recloom.data_shards.errors import UserError
from recloom.trainer.callbacks.metrics_log import kept_lines
from recloom.trainer.collaborative.tasks import NegativeSampler
from recloom.trainer.sentence_encoder import SentenceEncoder
from recloom.trainer.systems.a_llmrec.align_checkpoint import read_checkpoint, write_checkpoint
from recloom.trainer.systems.a_llmrec.align_data import (
    AlignBatch,
    Examples,
    States,
    TextVectors,
    epoch_batches,
)
from recloom.trainer.systems.a_llmrec.alignment import Alignment, Targets
from recloom.trainer.systems.a_llmrec.settings import AlignBlock

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Inputs:
    """What is trained on: the targets, the states before them, item vectors and texts of the catalogue."""

    examples: Examples
    sampler: NegativeSampler
    states: States
    items_ID: Tensor
    texts: TextVectors


class AlignLoop:
    """All steps of stage 1. Torch's generators must be the loop's own while it runs."""

    def __init__(
        self, alignment: Alignment, encoder: SentenceEncoder, inputs: Inputs, settings: AlignBlock, seed: int
    ) -> None:
        self.alignment, self.encoder, self.inputs = alignment, encoder, inputs
        self.settings, self.seed = settings, seed
        self.device = encoder.device
        learned = [
            weight for weight in (*alignment.parameters(), *encoder.parameters()) if weight.requires_grad
        ]
        self.optimizer = torch.optim.Adam(
            learned, lr=settings.learning_rate, betas=settings.betas, fused=True
        )
        self.step = 0
        self.epoch_steps = math.ceil(len(inputs.examples.count_S) / settings.batch_size)
        self.total_steps = settings.epochs * self.epoch_steps

    def run(self, folder: Path, run_digest: str) -> None:
        """Go on from the checkpoint of this digest, if there is one, to the end of the last epoch."""
        self.resume(read_checkpoint(folder, run_digest))
        self.encoder.train()
        for row in self.logged_steps(folder / METRICS):
            every = self.settings.checkpoint_every
            if every and (row["step"] % every == 0 or row["step"] == self.total_steps):
                write_checkpoint(folder, {"digest": run_digest, **self.state()})

    def logged_steps(self, path: Path) -> Iterator[dict[str, Any]]:
        """The remaining steps' rows, each written as a line of `path` and its loss shown."""
        atomic_write_text(path, kept_lines(path, self.step))
        shown: dict[str, Any] = {"total": self.total_steps, "initial": self.step, "unit": "step"}
        running: float | None = None
        with open(path, "a") as file, tqdm(desc="align", disable=None, **shown) as bar:
            for row in self.steps():
                file.write(json.dumps(row) + "\n")
                file.flush()
                running = row["total"] if running is None else 0.98 * running + 0.02 * row["total"]
                bar.update()
                bar.set_postfix_str(f"loss {running:.4f}")
                yield row

    def steps(self) -> Iterator[dict[str, Any]]:
        """Train; after each step, its number, epoch and losses."""
        inputs, size = self.inputs, self.settings.batch_size
        while self.step < self.total_steps:
            done_epochs, done_steps = divmod(self.step, self.epoch_steps)
            batches = epoch_batches(inputs.examples, inputs.sampler, size, self.seed, done_epochs + 1)
            for batch in islice(batches, done_steps, None):
                losses = self.train_step(batch)
                self.step += 1
                yield {"step": self.step, "epoch": done_epochs + 1, **losses}

    def train_step(self, batch: AlignBatch) -> dict[str, float]:
        """One update of everything that is learned; returns the losses before it."""
        losses = self.alignment(self.targets(batch))
        values = dict(zip(vars(losses), torch.stack(list(vars(losses).values())).tolist(), strict=True))
        if not math.isfinite(values["total"]):
            raise UserError(
                f"align.learning_rate = {self.settings.learning_rate}: the training diverged, the loss of "
                f"step {self.step + 1} is {values['total']}: lower it."
            )
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        self.optimizer.step()
        return values

    def targets(self, batch: AlignBatch) -> Targets:
        inputs = self.inputs
        positives_N = torch.from_numpy(inputs.examples.item_T[batch.rows_N])
        negatives_N = torch.from_numpy(batch.negatives_N)
        read = [positives_N, negatives_N] if self.settings.negatives_too else [positives_N]
        text = inputs.texts.of(torch.cat(read)).split(len(positives_N))
        rows = (inputs.states.of(batch.rows_N), inputs.items_ID[positives_N], inputs.items_ID[negatives_N])
        return Targets(batch.mask_BL.to(self.device), *(part_ND.to(self.device) for part_ND in rows), *text)

    def state(self) -> dict[str, Any]:
        """Position, weights, optimizer and generators; a frozen encoder has none of its own."""
        on_gpu = self.device.type == "cuda"
        return {
            "step": self.step,
            "alignment": self.alignment.state_dict(),
            "encoder": None if self.encoder.frozen else self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": torch.get_rng_state(),
            "gpu_generator": torch.cuda.get_rng_state(self.device) if on_gpu else None,
        }

    def resume(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        self.step = state["step"]
        self.alignment.load_state_dict(state["alignment"])
        if state["encoder"] is not None:
            self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["generator"])
        if state["gpu_generator"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["gpu_generator"], self.device)
