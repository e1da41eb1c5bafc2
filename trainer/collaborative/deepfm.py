"""DeepFM for ratings: Guo et al. 2017, "DeepFM: A Factorization-Machine based Neural Network".

Shapes: N pairs, F fields (user id, user attributes, item id, item attributes), D embedding width.
"""

from __future__ import annotations

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import Sizes, Task
from recloom.trainer.collaborative.fields import FieldBackbone, FieldSettings, bi_interaction, hidden_layers

TASK: Task = "rating"


class Settings(FieldSettings):
    model: str = "deepfm"
    hidden: tuple[PositiveInt, ...] = Field(default=(256, 128), description="widths of the deep part")


class DeepFM(FieldBackbone):
    """Prediction = bias + first order + second order (eq. 2) + deep part (eqs. 3, 4); no sigmoid.

    The deep part shares the embeddings of the second order. The loss is the squared error in stars.
    """

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        widths = [self.num_fields * settings.embedding, *settings.hidden]
        self.deep = nn.Sequential(*hidden_layers(widths, settings.dropout), nn.Linear(widths[-1], 1))

    def forward(self, users_N: Tensor, items_N: Tensor) -> Tensor:
        factors_NFD = self.fields(self.factors, users_N, items_N)
        deep_N = self.deep(factors_NFD.flatten(1))[:, 0]
        return self.first_order(users_N, items_N) + second_order(factors_NFD) + deep_N


def second_order(factors_NFD: Tensor) -> Tensor:
    """Sum of <v_f, v_g> over pairs of fields f < g."""
    return bi_interaction(factors_NFD).sum(1)
