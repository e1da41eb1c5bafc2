"""xDeepFM for ratings: Lian et al. 2018, "xDeepFM: Combining Explicit and Implicit Feature Interactions
for Recommender Systems".

Shapes: N pairs, F fields (user id, user attributes, item id, item attributes), D embedding width,
H feature maps of a layer, K feature maps of the next layer, M feature maps of all layers.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import Sizes, Task
from recloom.trainer.collaborative.fields import FieldBackbone, FieldSettings, hidden_layers

TASK: Task = "rating"


class Settings(FieldSettings):
    model: str = "xdeepfm"
    cin: tuple[PositiveInt, ...] = Field(default=(16, 16), description="feature maps of the CIN's layers")
    hidden: tuple[PositiveInt, ...] = Field(default=(128, 128), description="widths of the deep part")


class CompressedInteraction(nn.Module):
    """CIN with identity activation: every layer's feature maps are summed over D and kept (eqs. 6, 7)."""

    def __init__(self, num_fields: int, maps: tuple[int, ...]) -> None:
        super().__init__()
        before = (num_fields, *maps)
        sizes = zip(before, maps, strict=False)
        self.layers = nn.ModuleList(nn.Linear(h * num_fields, k, bias=False) for h, k in sizes)

    def forward(self, factors_NFD: Tensor) -> Tensor:
        """Sum-pooled feature maps (N, M)."""
        first_NDF = previous_NDH = factors_NFD.transpose(1, 2)
        pooled = []
        for layer in self.layers:
            products_NDHF = previous_NDH[:, :, :, None] * first_NDF[:, :, None, :]
            previous_NDH = layer(products_NDHF.flatten(2))
            pooled.append(previous_NDH.sum(1))
        return torch.cat(pooled, dim=1)


class XDeepFM(FieldBackbone):
    """Prediction = bias + first order + CIN + deep part, each through its own weights (eq. 15)."""

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        widths = [self.num_fields * settings.embedding, *settings.hidden]
        self.cin = CompressedInteraction(self.num_fields, settings.cin)
        self.cin_head = nn.Linear(sum(settings.cin), 1, bias=False)
        layers = hidden_layers(widths, settings.dropout)
        self.deep = nn.Sequential(*layers, nn.Linear(widths[-1], 1, bias=False))

    def forward(self, users_N: Tensor, items_N: Tensor) -> Tensor:
        factors_NFD = self.fields(self.factors, users_N, items_N)
        cin_N1 = self.cin_head(self.cin(factors_NFD))
        deep_N1 = self.deep(factors_NFD.flatten(1))
        return self.first_order(users_N, items_N) + (cin_N1 + deep_N1)[:, 0]
