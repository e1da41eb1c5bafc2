"""What M-Former reads: the frozen recommender's states of a history (C_u of section 3.2.1), standardised.

Shapes: S samples, N states of the longest history, D width of the recommender, M states of many histories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from recloom.data_shards.artifacts import MANIFEST, atomic_write_bytes, read_manifest, write_manifest
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.data import pad_histories
from recloom.trainer.collaborative.registry import load_backbone
from recloom.trainer.stages import Run
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


@torch.no_grad()
def run_states(run: Run[LaserConfig], task: Task) -> None:
    """Keep mean and deviation of the training histories' states; a constant dimension becomes 0."""
    backbone, items = load_backbone(run.path(BACKBONE)), run.config.texts.history_items
    parts = []
    for start in range(0, len(task.train), CHUNK):
        histories = [example.history.tolist() for example in task.train[start : start + CHUNK]]
        states_SND, real_SN = raw_states(backbone, histories, items)
        parts.append(states_SND[real_SN])
    states_MD = torch.cat(parts)
    varies_D = states_MD.amax(0) > states_MD.amin(0)
    tensors = {
        "mean": states_MD.mean(0),
        "deviation": states_MD.std(0, correction=0).where(varies_D, torch.inf),
    }
    folder = run.path(STATES)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    atomic_write_bytes(folder / FILE, safetensors.torch.save(tensors))
    write_manifest(folder)


def load_states(run: Run[LaserConfig]) -> States:
    """Raises UserError for a folder that is incomplete or damaged."""
    return states_in(run.path(STATES), load_backbone(run.path(BACKBONE)), run.config.texts.history_items)


def states_in(folder: Path, backbone: Backbone, history_items: int) -> States:
    read_manifest(folder, verify=True)
    tensors = safetensors.torch.load_file(folder / FILE)
    return States(backbone.requires_grad_(False), tensors["mean"], tensors["deviation"], history_items)
