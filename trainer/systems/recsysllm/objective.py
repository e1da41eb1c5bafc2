"""The loss of blank infilling: cross-entropy of part B, [END] included (RecSysLLM, training phase).

Shapes: A targets of a row, V words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from recloom.data_shards.blank_rows import BlankRow
from recloom.data_shards.stream import IGNORE, PackedRow, StepBatch
from recloom.trainer.parallel_layout import ALONE, RankLayout, sum_over_data


@dataclass(frozen=True)
class BlankLoss:
    """The mean over the targets of a step."""

    device: torch.device
    layout: RankLayout = ALONE

    def loss(self, model: Any, row: PackedRow) -> torch.Tensor:
        """Summed over the row. An empty row gives zero with a gradient path."""
        assert isinstance(row, BlankRow)
        keep_A = torch.nonzero(row.labels_T != IGNORE)[:, 0]
        is_empty = len(keep_A) == 0
        if is_empty:  # then some token stands in, so that all ranks run the same collectives
            keep_A = torch.zeros(1, dtype=torch.long)
        loss: torch.Tensor = model(
            input_ids=row.ids_T[None].to(self.device),
            intra_ids=row.intra_T[None].to(self.device),
            position_ids=row.position_ids_T[None].to(self.device),
            logits_to_keep=keep_A.to(self.device),
            boundaries=row.boundaries.tolist(),
            num_a=row.num_a_S.tolist(),
            targets_A=(torch.zeros_like(keep_A) if is_empty else row.labels_T[keep_A]).to(self.device),
        )
        return loss * 0.0 if is_empty else loss

    def units(self, batch: StepBatch) -> int:
        """Targets over all ranks: they are drawn with the masks, so no rank knows those of another."""
        own = sum(int((row.labels_T != IGNORE).sum()) for row in batch.rows)
        return int(sum_over_data(torch.tensor(own, device=self.device), self.layout))

    def told(self) -> dict[str, float]:
        return {}
