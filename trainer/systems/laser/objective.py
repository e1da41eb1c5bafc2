"""What Laser's training minimises: equation 12 per user, against the item matrix of the epoch.

Shapes: S users of a row, I items, H width of the LLM, K experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from recloom.data_shards.shards import ShardReader
from recloom.data_shards.stream import PackedRow, StepBatch
from recloom.trainer.parallel_layout import ALONE, RankLayout, sum_over_data
from recloom.trainer.systems.laser.bituning import BiTuningOutput
from recloom.trainer.systems.laser.losses import laser_losses
from recloom.trainer.systems.laser.settings import BiTuneBlock
from recloom.trainer.systems.laser.states import States

Meta = dict[str, Any]


class RowReader:
    """Runs a network on packed rows of texts: one vector a text.

    states: None for a network without an M-Former.
    """

    def __init__(self, source: ShardReader, states: States | None, device: torch.device) -> None:
        self.source, self.states, self.device = source, states, device

    def metas(self, indices: Iterable[int]) -> list[Meta]:
        """What the shards tell of samples: `history`, of an item itself alone, and a user's `target`."""
        return [self.source.record(index)["meta"] for index in indices]

    def read(self, network: Any, row: PackedRow, metas: Sequence[Meta] | None = None) -> BiTuningOutput:
        """An empty row is read as a text of one token by a user of no history.

        metas: of the row's samples, where they have been read already.
        """
        inputs: dict[str, Any] = {
            "ids": row.ids_T.to(self.device),
            "boundaries": row.boundaries.tolist(),
        }
        if self.states is not None:
            metas = self.metas(row.sample_indices) if metas is None else metas
            C_SND, real_SN = self.collaborative(metas)
            inputs |= {"C_SND": C_SND.to(self.device), "real_SN": real_SN.to(self.device)}
        output: BiTuningOutput = network(**inputs)
        return output

    def collaborative(self, metas: Sequence[Meta]) -> tuple[Tensor, Tensor]:
        assert self.states is not None
        if not metas:
            return torch.zeros(1, 1, self.states.width), torch.ones(1, 1, dtype=torch.bool)
        return self.states.of([meta["history"] for meta in metas])


class LaserLoss:
    """An Objective (trainer/loss.py) whose units are users. `items_IH` is set before each epoch."""

    def __init__(
        self, reader: RowReader, settings: BiTuneBlock, experts: int | None, layout: RankLayout = ALONE
    ) -> None:
        self.reader, self.settings, self.layout = reader, settings, layout
        self.items_IH: Tensor | None = None
        self.sums = torch.zeros(3 + (experts or 0), dtype=torch.float64)  # users, losses, users an expert

    def loss(self, model: Any, row: PackedRow) -> Tensor:
        assert self.items_IH is not None
        metas = self.reader.metas(row.sample_indices)
        output = self.reader.read(model, row, metas)
        if not metas:
            return nothing(output)
        targets_S = torch.tensor([meta["target"] for meta in metas])
        settings = self.settings
        losses = laser_losses(
            output,
            self.items_IH,
            targets_S.to(self.items_IH.device),
            settings.temperature,
            settings.balance_weight,
            settings.balance_over,
        )
        parts = [losses.contrastive_S.detach().sum(), losses.balance_S.detach().sum()]
        self.sums[:3] += torch.stack([torch.tensor(float(len(targets_S))), *(p.cpu() for p in parts)])
        if output.router is not None:
            self.sums[3:] += output.router.chosen_B.bincount(minlength=len(self.sums) - 3).cpu()
        return losses.total_S.sum()

    def units(self, batch: StepBatch) -> int:
        return len(batch.sample_ids)

    def told(self) -> dict[str, float]:
        """Both losses, and the share of the users that each expert takes; counts anew."""
        sums = sum_over_data(self.sums.to(self.reader.device), self.layout).clone()
        self.sums.zero_()
        users, contrastive, balance, *taken = sums.tolist()
        told = {"contrastive": contrastive / users}
        if taken:
            told |= {"balance": balance / users}
            told |= {f"expert_{expert}": count / users for expert, count in enumerate(taken)}
        return told


def nothing(output: BiTuningOutput) -> Tensor:
    """Zero, with a gradient to all that is trained: every rank reduces the same parameters."""
    total = output.states_SH.float().sum()
    if output.router is not None:
        total = total + output.router.scores_BK.float().sum()
    return total * 0.0
