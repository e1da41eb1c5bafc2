"""What M-Former reads: the frozen recommender's states of a history (C_u of section 3.2.1), standardised.

Shapes: S samples, N states of the longest history, D width of the recommender, M states of many histories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from recloom.data_shards.artifacts import MANIFEST, atomic_write_bytes, read_manifest, write_manifest
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.data import pad_histories
from recloom.trainer.collaborative.registry import load_backbone
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser.methods import Method
from recloom.trainer.systems.laser.settings import LaserConfig
from recloom.trainer.systems.laser.task import Task

BACKBONE, STATES, FILE = "backbone", "states", "standard.safetensors"
CHUNK = 512


@dataclass(frozen=True)
class States:
    """Of any history; `mean` and `deviation` (D,) are those of the training histories' states."""

    backbone: Backbone
    mean_D: Tensor
    deviation_D: Tensor
    history_items: int

    @property
    def width(self) -> int:
        return len(self.mean_D)

    @torch.no_grad()
    def of(self, histories: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """C_SND in float32 and real_SN, for histories that are not empty."""
        states_SND, real_SN = raw_states(self.backbone, histories, self.history_items)
        return (states_SND - self.mean_D) / self.deviation_D, real_SN


def raw_states(
    backbone: Backbone, histories: Sequence[Sequence[int]], history_items: int
) -> tuple[Tensor, Tensor]:
    """history_items: as many as are read of a recommender without a limit of its own."""
    limit = backbone.history_length or history_items
    longest = min(limit, max(map(len, histories)))
    arrays = [np.asarray(items, dtype=np.int64) for items in histories]
    return backbone.states(pad_histories(arrays, longest, backbone.num_items))


@dataclass
class Spread:
    """Mean and deviation of states that come in parts; a constant dimension has deviation inf.

    Sums are taken around the first state: squares of numbers far from zero would lose their digits.
    """

    shift_D: Tensor
    sum_D: Tensor
    square_D: Tensor
    varies_D: Tensor
    count: int = 0

    @classmethod
    def around(cls, shift_D: Tensor) -> Spread:
        zeros_D = torch.zeros_like(shift_D)
        return cls(shift_D, zeros_D, zeros_D.clone(), zeros_D.bool())

    def add(self, states_MD: Tensor) -> None:
        centred_MD = states_MD - self.shift_D
        self.count += len(states_MD)
        self.sum_D += centred_MD.sum(0)
        self.square_D += centred_MD.square().sum(0)
        self.varies_D |= (centred_MD != 0).any(0)

    def tensors(self) -> dict[str, Tensor]:
        mean_D = self.sum_D / self.count
        deviation_D = (self.square_D / self.count - mean_D.square()).clamp(min=0).sqrt()
        return {
            "mean": (self.shift_D + mean_D).float(),
            "deviation": deviation_D.where(self.varies_D, torch.inf).float(),
        }


@torch.no_grad()
def run_states(run: Run[LaserConfig], task: Task) -> None:
    """Keep mean and deviation of the training histories' states."""
    backbone, items = load_backbone(run.path(BACKBONE)), run.config.texts.history_items
    spread: Spread | None = None
    for start in range(0, len(task.train), CHUNK):
        histories = [example.history.tolist() for example in task.train[start : start + CHUNK]]
        states_SND, real_SN = raw_states(backbone, histories, items)
        states_MD = states_SND[real_SN].double()
        spread = spread or Spread.around(states_MD[0])
        spread.add(states_MD)
    assert spread is not None, "a task has training examples"
    folder = run.path(STATES)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    atomic_write_bytes(folder / FILE, safetensors.torch.save(spread.tensors()))
    write_manifest(folder)


def load_states(run: Run[LaserConfig]) -> States:
    """Raises UserError for a folder that is incomplete or damaged."""
    backbone, folder = load_backbone(run.path(BACKBONE)).requires_grad_(False), run.path(STATES)
    read_manifest(folder, verify=True)
    tensors = safetensors.torch.load_file(folder / FILE)
    return States(backbone, tensors["mean"], tensors["deviation"], run.config.texts.history_items)


def method_states(run: Run[LaserConfig], method: Method) -> States | None:
    """None for a method without an M-Former, which reads none."""
    return load_states(run) if method.prefix == "mformer" else None
