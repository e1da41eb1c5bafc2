"""What SASRec, CL4SRec and BERT4Rec share: the item and position tables, attention, padding.

Shapes: B sequences, L length, H heads, D width, d width of a head, M targets that
are no padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from recloom.trainer.collaborative.base import BackboneSettings, Batch, Sizes
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.next_item import NextItemBackbone


class TransformerSettings(BackboneSettings):
    """What every transformer over the history can set."""

    max_epochs: PositiveInt = 100
    patience: PositiveInt = 5
    max_length: int = Field(default=50, gt=0, description="items of history that the model sees")
    blocks: int = Field(default=2, gt=0)
    heads: int = Field(default=1, gt=0)
    dropout: float = Field(default=0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def heads_divide(self) -> Self:
        if self.embedding % self.heads:
            raise ValueError(
                f"embedding is {self.embedding}, heads is {self.heads}: heads must divide embedding, "
                "change one of them."
            )
        return self


class Block(nn.Module):
    """Self-attention, then a point-wise feed-forward net, each pre-norm with a residual.

    There is no output projection after the heads: with one head it folds into the values' own.
    """

    def __init__(self, width: int, heads: int, dropout: float, inner: int, activation: nn.Module) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.feed = nn.Sequential(
            nn.Linear(width, inner), activation, nn.Dropout(dropout), nn.Linear(inner, width)
        )

    def forward(self, hidden_BLD: Tensor, allowed_B1LL: Tensor, last: int | None = None) -> Tensor:
        """The new hidden states of all positions, or only of the `last` ones."""
        normed_BLD = self.attention_norm(hidden_BLD)
        if last is not None:
            hidden_BLD, allowed_B1LL = hidden_BLD[:, -last:], allowed_B1LL[:, :, -last:]
        query_BHLd, key_BHLd, value_BHLd = (
            layer(states_BLD).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, states_BLD in (
                (self.query, normed_BLD[:, -hidden_BLD.shape[1] :]),
                (self.key, normed_BLD),
                (self.value, normed_BLD),
            )
        )
        mixed_BHLd = F.scaled_dot_product_attention(query_BHLd, key_BHLd, value_BHLd, attn_mask=allowed_B1LL)
        mixed_BLD = mixed_BHLd.transpose(1, 2).flatten(2)
        hidden_BLD = hidden_BLD + F.dropout(mixed_BLD, self.dropout, self.training)
        fed_BLD = self.feed(self.feed_norm(hidden_BLD))
        return hidden_BLD + F.dropout(fed_BLD, self.dropout, self.training)


class TransformerBackbone(NextItemBackbone):
    """A stack of blocks over item and position embeddings; items are tied to the scores.

    The rows of the item table: the catalogue, then padding (`num_items`), then a subclass's own tokens.
    """

    causal = True
    own_tokens = 0

    def __init__(self, settings: TransformerSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        width, rows = settings.embedding, self.num_items + 1 + self.own_tokens
        self.history_length = self.max_length = settings.max_length
        self.items = nn.Embedding(rows, width, padding_idx=self.num_items)
        self.positions = nn.Embedding(settings.max_length, width)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(self.block(settings) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(width)
        for table in (self.items.weight, self.positions.weight):
            nn.init.normal_(table, std=0.02)

    @staticmethod
    def block(settings: TransformerSettings) -> Block:
        """SASRec's block: as wide inside as outside, with ReLU."""
        return Block(settings.embedding, settings.heads, settings.dropout, settings.embedding, nn.ReLU())

    def batches(self, data: TopKData, rng: np.random.Generator) -> Iterator[Batch]:
        """Cut to the longest sequence of the batch: nothing sees padding, and most histories are short."""
        for inputs_BL, targets_BL in super().batches(data, rng):
            longest = int((inputs_BL != self.num_items).sum(1).max())
            yield inputs_BL[:, -longest:], targets_BL[:, -longest:]

    def encode(self, inputs_BL: Tensor, last: int | None = None) -> Tensor:
        """Hidden states (B, L, D), or only the `last` ones, which spares most of the top block's work.

        Inputs are padded on the left, positions count from the right.
        """
        inputs_BL = inputs_BL[:, -self.max_length :]
        length = inputs_BL.shape[1]
        real_BL = inputs_BL != self.num_items
        near_LL = torch.ones(length, length, dtype=torch.bool)
        near_LL = near_LL.tril() if self.causal else near_LL
        # a padded row attends to itself, otherwise its softmax is over nothing
        allowed_BLL = near_LL & (real_BL[:, None, :] | torch.eye(length, dtype=torch.bool))
        positions_L = torch.arange(self.max_length - length, self.max_length)
        hidden_BLD = self.items(inputs_BL) * self.items.embedding_dim**0.5 + self.positions(positions_L)
        hidden_BLD = self.dropout(hidden_BLD)
        for block in self.blocks[:-1]:
            hidden_BLD = block(hidden_BLD, allowed_BLL[:, None])
        hidden_BLD = self.blocks[-1](hidden_BLD, allowed_BLL[:, None], last)
        return self.norm(hidden_BLD)
