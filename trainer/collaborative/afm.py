"""AFM for ratings: Xiao et al. 2017, "Attentional Factorization Machines: Learning the Weight of
Feature Interactions via Attention Networks".

Shapes: N pairs, F fields (user id, user attributes, item id, item attributes), D embedding width,
P = F (F - 1) / 2 pairs of fields.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import Sizes, Task
from recloom.trainer.collaborative.fields import FieldBackbone, FieldSettings

TASK: Task = "rating"


class Settings(FieldSettings):
    model: str = "afm"
    attention: PositiveInt = Field(default=8, description="width of the attention network")


class AFM(FieldBackbone):
    """Prediction (eq. 6) = bias + first order + p^T of the attended sum of the pairs' element products.

    Pairs (eq. 2) are weighed by a softmax over an attention network with one hidden layer (eq. 5) and
    added up (eq. 4). Dropout falls on the sum.
    """

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.attention = nn.Sequential(
            nn.Linear(settings.embedding, settings.attention),
            nn.ReLU(),
            nn.Linear(settings.attention, 1, bias=False),
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.projection = nn.Linear(settings.embedding, 1, bias=False)

    def forward(self, users_N: Tensor, items_N: Tensor) -> Tensor:
        pairs_NPD = pair_products(self.fields(self.factors, users_N, items_N))
        weights_NP1 = self.attention(pairs_NPD).softmax(1)
        pooled_ND = self.dropout((weights_NP1 * pairs_NPD).sum(1))
        return self.first_order(users_N, items_N) + self.projection(pooled_ND)[:, 0]


def pair_products(factors_NFD: Tensor) -> Tensor:
    """Element products v_f * v_g of all fields f < g (N, P, D)."""
    # slices, not an index of pairs: the backward of an index is not deterministic on several threads
    later = range(1, factors_NFD.shape[1])
    return torch.cat([factors_NFD[:, g - 1 : g] * factors_NFD[:, g:] for g in later], dim=1)
