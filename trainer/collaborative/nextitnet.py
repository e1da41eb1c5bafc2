"""NextItNet: Yuan et al. 2019, "A Simple Convolutional Generative Network for Next Item Recommendation".

Shapes: B sequences, L length, D embedding width, I items, M targets that are no padding.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import BackboneSettings, Batch, Sizes, Task
from recloom.trainer.collaborative.next_item import NextItemBackbone

TASK: Task = "sequential"


class Settings(BackboneSettings):
    model: str = "nextitnet"
    learning_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 1e-5
    batch_size: PositiveInt = 64
    max_epochs: PositiveInt = 100
    patience: PositiveInt = 5
    max_length: PositiveInt = Field(default=50, description="items of history that the model sees")
    kernel: PositiveInt = Field(default=3, description="items that a convolution joins")
    dilations: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        default=(1, 4, 1, 4),
        description="one a residual block, of its first convolution; the second's is twice as large",
    )
    dropout: float = Field(default=0.2, ge=0, lt=1)


class Block(nn.Module):
    """Two dilated causal convolutions, each with layer norm and ReLU, and a residual (Figure 3b)."""

    def __init__(self, width: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, kernel, dilation=step) for step in (dilation, 2 * dilation)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.convolutions)
        self.reaches = [(kernel - 1) * step for step in (dilation, 2 * dilation)]

    def forward(self, hidden_BLD: Tensor, real_BL1: Tensor) -> Tensor:
        """Padding stays 0, as what a convolution sees before the first item."""
        state_BLD = hidden_BLD
        for convolution, norm, reach in zip(self.convolutions, self.norms, self.reaches, strict=True):
            mixed_BDL = convolution(F.pad(state_BLD.transpose(1, 2), (reach, 0)))
            state_BLD = F.relu(norm(mixed_BDL.transpose(1, 2))) * real_BL1
        return hidden_BLD + F.dropout(state_BLD, self.dropout, self.training)


class NextItNet(NextItemBackbone):
    """Each item's probability given all before it (eq. 1), by a stack of dilated convolutions.

    One with kernel k and dilation d joins k items that lie d apart, none of them later. The blocks with
    the default dilations see 61 items.

    Scores are dot products of the last hidden state and the tied item embeddings, not the paper's output
    layer with weights and biases of its own: on ML-100K's validation N@10 was 0.105 and 0.070 (one seed).
    """

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        width = settings.embedding
        self.history_length = self.max_length = settings.max_length
        self.items = nn.Embedding(self.num_items + 1, width, padding_idx=self.num_items)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(
            Block(width, settings.kernel, dilation, settings.dropout) for dilation in settings.dilations
        )
        nn.init.normal_(self.items.weight, std=0.02)

    def encode(self, inputs_BL: Tensor, last: int | None = None) -> Tensor:
        """Hidden states (B, L, D) of inputs that are padded on the left."""
        inputs_BL = inputs_BL[:, -self.max_length :]
        real_BL1 = (inputs_BL != self.num_items)[:, :, None]
        hidden_BLD = self.items(inputs_BL) * self.items.embedding_dim**0.5 * real_BL1
        hidden_BLD = self.dropout(hidden_BLD)
        for block in self.blocks:
            hidden_BLD = block(hidden_BLD, real_BL1)
        return hidden_BLD

    def loss(self, batch: Batch) -> Tensor:
        return self.next_item_loss(*batch)
