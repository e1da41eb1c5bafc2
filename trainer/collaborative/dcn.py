"""DCN for ratings: Wang et al. 2017, "Deep & Cross Network for Ad Click Predictions".

Shapes: N pairs, F fields (user id, user attributes, item id, item attributes), D embedding width,
C = F * D embeddings side by side, H width of the last hidden layer.
"""

from __future__ import annotations

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import Sizes, Task
from recloom.trainer.collaborative.fields import FieldBackbone, FieldSettings, hidden_layers

TASK: Task = "rating"


class Settings(FieldSettings):
    model: str = "dcn"
    weight_decay: NonNegativeFloat = 1e-4
    cross_layers: PositiveInt = Field(default=2, description="number of cross layers")
    hidden: tuple[PositiveInt, ...] = Field(default=(128, 128), description="widths of the deep part")


class CrossLayer(nn.Module):
    """x_{l+1} = x_0 x_l^T w_l + b_l + x_l (eq. 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, first_NC: Tensor, previous_NC: Tensor) -> Tensor:
        return first_NC * self.weight(previous_NC) + self.bias + previous_NC


class DCN(FieldBackbone):
    """Prediction = bias + first order + a linear map of cross and deep output side by side (eq. 5).

    The cross network (eq. 3) and the deep network (eq. 4) both start from the field embeddings. The
    first order is not the paper's; the library that Llama4Rec used adds it to every model.
    """

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        widths = [self.num_fields * settings.embedding, *settings.hidden]
        self.cross = nn.ModuleList(CrossLayer(widths[0]) for _ in range(settings.cross_layers))
        self.deep = nn.Sequential(*hidden_layers(widths, settings.dropout))
        self.head = nn.Linear(widths[0] + widths[-1], 1, bias=False)

    def forward(self, users_N: Tensor, items_N: Tensor) -> Tensor:
        first_NC = self.fields(self.factors, users_N, items_N).flatten(1)
        crossed_NC = first_NC
        for layer in self.cross:
            crossed_NC = layer(first_NC, crossed_NC)
        deep_NH = self.deep(first_NC)
        return self.first_order(users_N, items_N) + self.head(torch.cat([crossed_NC, deep_NH], 1))[:, 0]
