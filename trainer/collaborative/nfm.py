"""NFM for ratings: He and Chua 2017, "Neural Factorization Machines for Sparse Predictive Analytics".

Shapes: N pairs, F fields (user id, user attributes, item id, item attributes), D embedding width.
"""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import Sizes, Task
from recloom.trainer.collaborative.fields import FieldBackbone, FieldSettings, bi_interaction, hidden_layers

TASK: Task = "rating"


class Settings(FieldSettings):
    model: str = "nfm"
    weight_decay: NonNegativeFloat = 1e-4
    hidden: tuple[PositiveInt, ...] = Field(default=(128, 128), description="widths of the deep part")


class NFM(FieldBackbone):
    """Prediction (eq. 7) = bias + first order + deep part of the pooled pairs of embeddings.

    Bi-interaction pooling (eq. 4) adds the element products of all pairs of fields up; hidden layers
    (eq. 5) and a weight vector (eq. 6) follow. Dropout also falls on the pooled vector (section 3.3).
    """

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        widths = [settings.embedding, *settings.hidden]
        layers = [nn.Dropout(settings.dropout), *hidden_layers(widths, settings.dropout)]
        self.deep = nn.Sequential(*layers, nn.Linear(widths[-1], 1, bias=False))

    def forward(self, users_N: Tensor, items_N: Tensor) -> Tensor:
        pooled_ND = bi_interaction(self.fields(self.factors, users_N, items_N))
        return self.first_order(users_N, items_N) + self.deep(pooled_ND)[:, 0]
