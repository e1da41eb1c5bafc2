"""AutoInt for ratings: Song et al. 2019, "AutoInt: Automatic Feature Interaction Learning via
Self-Attentive Neural Networks".

Shapes: N pairs, F fields (user id, user attributes, item id, item attributes), G fields attended to,
D width of a field's vector, H heads, A width of a head.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import Sizes, Task
from recloom.trainer.collaborative.fields import FieldBackbone, FieldSettings

TASK: Task = "rating"


class Settings(FieldSettings):
    model: str = "autoint"
    layers: PositiveInt = Field(default=2, description="number of interacting layers")
    heads: PositiveInt = Field(default=2, description="attention heads of a layer")
    attention: PositiveInt = Field(default=8, description="width of a head")


class Interacting(nn.Module):
    """Self-attention over the fields (eqs. 5 to 7) with a projected residual and ReLU (eq. 8)."""

    def __init__(self, width: int, heads: int, attention: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.residual = (
            nn.Linear(width, heads * attention, bias=False) for _ in range(4)
        )

    def forward(self, factors_NFD: Tensor) -> Tensor:
        """(N, F, D) to (N, F, H * A)."""
        maps = (self.query, self.key, self.value)
        query, key, value = (m(factors_NFD).unflatten(2, (self.heads, -1)).transpose(1, 2) for m in maps)
        weights_NHFG = (query @ key.transpose(2, 3)).softmax(3)
        attended_NFHA = (weights_NHFG @ value).transpose(1, 2)
        return torch.relu(attended_NFHA.flatten(2) + self.residual(factors_NFD))


class AutoInt(FieldBackbone):
    """Prediction = bias + first order + a linear map of all fields' last vectors (eq. 9).

    The first order is not the paper's; the library that Llama4Rec used adds it to every model.
    """

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        heads, attention = settings.heads, settings.attention
        widths = [settings.embedding] + [heads * attention] * (settings.layers - 1)
        self.interacting = nn.Sequential(*(Interacting(width, heads, attention) for width in widths))
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(self.num_fields * heads * attention, 1, bias=False)

    def forward(self, users_N: Tensor, items_N: Tensor) -> Tensor:
        interacted_NFD = self.interacting(self.fields(self.factors, users_N, items_N))
        interacted_N1 = self.head(self.dropout(interacted_NFD.flatten(1)))
        return self.first_order(users_N, items_N) + interacted_N1[:, 0]
