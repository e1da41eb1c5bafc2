"""Matrix factorisation trained with BPR (Koren et al. 2009; Rendle et al. 2009).

Shapes: U users, I items, D embedding width.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import BackboneSettings, Sizes, Task
from recloom.trainer.collaborative.tasks import DirectBackbone

TASK: Task = "direct"


class Settings(BackboneSettings):
    model: str = "mf"
    learning_rate: PositiveFloat = 1e-2
    weight_decay: NonNegativeFloat = 1e-2
    batch_size: PositiveInt = 8192


class MF(DirectBackbone):
    """y_ui = p_u . q_i."""

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.users = nn.Embedding(self.num_users, settings.embedding)
        self.items = nn.Embedding(self.num_items, settings.embedding)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.1)

    def ego_vectors(self) -> tuple[Tensor, Tensor]:
        return self.users.weight, self.items.weight

    def all_vectors(self) -> tuple[Tensor, Tensor]:
        return self.ego_vectors()
