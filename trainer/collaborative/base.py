"""What every backbone is: settings with defaults, and one interface for fitting and scoring.

Shapes: B users, L history length, I items, D vector width, N pairs, U all users.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

Task = Literal["direct", "sequential", "rating"]
Batch = tuple[Tensor, ...]
Sizes = dict[str, Any]


class BackboneSettings(BaseModel):
    """Settings that all backbones share; a backbone's `Settings` sets its own defaults and adds fields.

    Bounds are in the types, not in `Field`: a default set anew keeps the type and would lose the `Field`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="name of the file in trainer/collaborative/, without .py")
    embedding: PositiveInt = Field(default=64, description="width of the user and item vectors")
    learning_rate: PositiveFloat = Field(default=1e-3, description="of Adam")
    weight_decay: NonNegativeFloat = Field(default=0.0, description="weight of the L2 penalty")
    batch_size: PositiveInt = Field(default=2048, description="training examples a step")
    max_epochs: PositiveInt = 200
    patience: PositiveInt = Field(
        default=20, description="epochs without a better validation value before the end"
    )
    evaluate_every: PositiveInt = Field(default=1, description="epochs between two validations")


class Backbone(nn.Module, ABC):
    """A conventional recommender.

    `sizes` is all that the constructor must know about the data, as JSON values: weights saved with
    settings and sizes load without the data. `tasks.py` has the three kinds a new backbone derives from.
    """

    history_length: int = 0
    """Items of history that `score` looks at; 0 when it ignores them."""

    def __init__(self, settings: BackboneSettings, sizes: Sizes) -> None:
        super().__init__()
        self.settings = settings
        self.sizes = sizes
        self.num_users: int = sizes["num_users"]
        self.num_items: int = sizes["num_items"]

    @classmethod
    def build(cls, data: Any, settings: BackboneSettings) -> Self:
        """A backbone with fresh weights (torch's global generator) for `data`."""
        backbone = cls(settings, cls.sizes_of(data))
        backbone.attach(data)
        return backbone

    @classmethod
    def sizes_of(cls, data: Any) -> Sizes:
        return {"num_users": data.num_users, "num_items": data.num_items}

    def attach(self, data: Any) -> None:  # noqa: B027 (most backbones have nothing to attach)
        """Fill buffers that come from the data (a graph, feature tables); saved with the weights."""

    def optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        return torch.optim.Adam(
            self.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    @abstractmethod
    def batches(self, data: Any, rng: np.random.Generator) -> Iterator[Batch]:
        """The training batches of one epoch, all randomness from `rng`."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The scalar training loss of one batch."""

    @abstractmethod
    def user_vectors(self, users_B: Tensor, histories_BL: Tensor) -> Tensor:
        """One vector a user (B, D), whose cosine tells similar users (Llama4Rec, eq. 4)."""

    def states(self, histories_BL: Tensor) -> tuple[Tensor, Tensor]:
        """What the model makes of each item of a history (Laser's C_u): (B, N, D), and which are real (B, N).

        Here the items' own vectors; sequential backbones give their hidden states.
        """
        real_BL = histories_BL != self.num_items
        return self.item_vectors()[histories_BL.where(real_BL, 0)], real_BL

    @abstractmethod
    def item_vectors(self) -> Tensor:
        """One vector an item (I, D)."""

    def score(self, users_B: Tensor, histories_BL: Tensor) -> Tensor:
        """Scores of the full catalogue (B, I).

        histories_BL: items in time order, the latest last, padded on the left with `num_items`.
        """
        return self.user_vectors(users_B, histories_BL) @ self.item_vectors().T

    def predict_rating(self, users_N: Tensor, items_N: Tensor) -> Tensor:
        """Predicted ratings (N,) in the data's range; only rating backbones have them."""
        raise NotImplementedError(f"{self.settings.model} predicts no ratings, only orders of items.")
