"""GRU4Rec: Hidasi et al. 2016, "Session-based Recommendations with Recurrent Neural Networks"; Hidasi and
Karatzoglou 2018, "Recurrent Neural Networks with Top-k Gains for Session-based Recommendations".

Shapes: B sequences, L length, D embedding width, I items, M targets that are no padding.
"""

from __future__ import annotations

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import BackboneSettings, Batch, Sizes, Task
from recloom.trainer.collaborative.next_item import NextItemBackbone

TASK: Task = "sequential"


class Settings(BackboneSettings):
    model: str = "gru4rec"
    learning_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 1e-5
    batch_size: PositiveInt = 64
    max_epochs: PositiveInt = 100
    patience: PositiveInt = 5
    max_length: PositiveInt = Field(default=50, description="items of history that the model sees")
    layers: PositiveInt = Field(default=1, description="recurrent layers")
    dropout: float = Field(default=0.4, ge=0, lt=1, description="of the embeddings and of the states")


class GRU4Rec(NextItemBackbone):
    """A gated recurrent unit over the history (2016, eqs. 1 to 5), in PyTorch's form of the reset gate.

    Scores are dot products of the last state and the tied item embeddings, the "constrained embedding"
    of the authors' code. The loss is the cross-entropy of the 2018 paper with all items for negatives,
    not a sample of them; so whole sequences make a batch, not session-parallel steps.
    """

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        width = settings.embedding
        self.history_length = self.max_length = settings.max_length
        self.items = nn.Embedding(self.num_items + 1, width, padding_idx=self.num_items)
        self.dropout = nn.Dropout(settings.dropout)
        self.gru = nn.GRU(width, width, settings.layers, batch_first=True)
        nn.init.normal_(self.items.weight, std=0.02)

    def encode(self, inputs_BL: Tensor, last: int | None = None) -> Tensor:
        """Hidden states (B, L, D) of inputs that are padded on the left.

        The rows are turned so that their items come first: no state has seen padding before.
        """
        inputs_BL = inputs_BL[:, -self.max_length :]
        padding_B1 = (inputs_BL == self.num_items).sum(1, keepdim=True)
        vectors_BLD = self.items(turned(inputs_BL, padding_B1)) * self.items.embedding_dim**0.5
        states_BLD, _ = self.gru(self.dropout(vectors_BLD))
        return turned(self.dropout(states_BLD), -padding_B1)

    def loss(self, batch: Batch) -> Tensor:
        return self.next_item_loss(*batch)


def turned(rows_BLX: Tensor, places_B1: Tensor) -> Tensor:
    """Row b turned left by places_B1[b], which may be negative: what falls out comes in at the other end."""
    width = rows_BLX.shape[1]
    from_BL = (torch.arange(width) + places_B1) % width
    return rows_BLX[torch.arange(len(rows_BLX))[:, None], from_BL]
