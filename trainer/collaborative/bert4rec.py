"""BERT4Rec: Sun et al. 2019, "BERT4Rec: Sequential Recommendation with Bidirectional Encoder
Representations from Transformer".

Shapes: B sequences, L length, D embedding width, I items, M masked positions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import Batch, Sizes, Task
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.softmax import softmax_loss
from recloom.trainer.collaborative.transformer import Block, TransformerBackbone, TransformerSettings

TASK: Task = "sequential"


class Settings(TransformerSettings):
    model: str = "bert4rec"
    learning_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 1e-5
    batch_size: PositiveInt = 64
    max_length: int = Field(default=50, gt=1, description="items of history and the [mask] after them")
    mask: float = Field(default=0.5, gt=0, le=1, description="share of items that are masked (rho)")
    last_mask: float = Field(
        default=0.1, ge=0, le=1, description="share of sequences of which only the last item is masked"
    )


class BERT4Rec(TransformerBackbone):
    """Bidirectional attention, trained to fill in masked items (Cloze, eq. 8).

    At scoring a [mask] follows the history, and its output ranks the items (eq. 7). Blocks are pre-norm,
    not post-norm as in eqs. (5) and (6): that trains without a warm-up.
    """

    causal = False
    own_tokens = 1

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.mask, self.last_mask = settings.mask, settings.last_mask
        self.mask_token = self.num_items + 1
        self.history_length = self.max_length - 1
        self.projection = nn.Linear(settings.embedding, settings.embedding)
        self.bias = nn.Parameter(torch.zeros(self.num_items))

    @staticmethod
    def block(settings: TransformerSettings) -> Block:
        """Four times as wide inside, with GELU (eq. 4)."""
        width = settings.embedding
        return Block(width, settings.heads, settings.dropout, 4 * width, nn.GELU())

    def batches(self, data: TopKData, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of one tensor, sequences_BL, padded on the left with num_items."""
        for inputs_BL, targets_BL in super().batches(data, rng):
            yield (torch.cat([inputs_BL[:, :1], targets_BL], dim=1),)

    def masked_positions(self, sequences_BL: Tensor) -> Tensor:
        """Where to mask, bool (B, L): at random, at least one item a sequence, or only the last."""
        real_BL = sequences_BL != self.num_items
        masked_BL = (torch.rand(sequences_BL.shape) < self.mask) & real_BL
        only_last_B = (torch.rand(len(sequences_BL)) < self.last_mask) | ~masked_BL.any(1)
        masked_BL[only_last_B] = False
        masked_BL[only_last_B, -1] = True
        return masked_BL

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the masked items over the full catalogue, at the masked positions (eq. 8)."""
        (sequences_BL,) = batch
        masked_BL = self.masked_positions(sequences_BL)
        hidden_MD = self.encode(sequences_BL.masked_fill(masked_BL, self.mask_token))[masked_BL]
        targets_M = sequences_BL[masked_BL]
        return softmax_loss(self.project(hidden_MD), self.item_vectors(), targets_M, self.bias)

    def project(self, hidden_MD: Tensor) -> Tensor:
        """GELU(h W + b) of eq. (7)."""
        return F.gelu(self.projection(hidden_MD))

    def user_vectors(self, users_B: Tensor, histories_BL: Tensor) -> Tensor:
        """The projected state of a [mask] that follows the history."""
        mask_B1 = torch.full((len(histories_BL), 1), self.mask_token)
        hidden_B1D = self.encode(torch.cat([histories_BL, mask_B1], dim=1), last=1)
        return self.project(hidden_B1D[:, 0])

    def states(self, histories_BL: Tensor) -> tuple[Tensor, Tensor]:
        """With the state of a [mask] behind the history, which is what ranks the next item."""
        mask_B1 = torch.full((len(histories_BL), 1), self.mask_token)
        known_BL = torch.cat([histories_BL[:, -self.history_length :], mask_B1], dim=1)
        return self.encode(known_BL), known_BL != self.num_items

    def score(self, users_B: Tensor, histories_BL: Tensor) -> Tensor:
        return super().score(users_B, histories_BL) + self.bias
