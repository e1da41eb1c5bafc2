"""A recommender of the user's own: its item and user vectors, read from files.

Shapes: B users, L history length, I items, V = I + 1 rows, the last of them padding, U users, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from recloom.data_shards.errors import UserError
from recloom.trainer.collaborative.base import Backbone, BackboneSettings, Batch, Sizes, Task
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.vector_files import vectors_of

TASK: Task = "direct"


class Settings(BackboneSettings):
    """The width is the files'; what is about training means nothing here."""

    model: str = "vectors"
    items: str = Field(
        description="Parquet or Feather file with columns key (the source's item id) and vector (numbers)"
    )
    users: str | None = Field(
        default=None, description="such a file of users; None: the mean of the history's item vectors"
    )
    missing: Literal["error", "zero"] = Field(
        default="error", description="where a file lacks an item or user: refuse it, or a vector of zeros"
    )
    max_length: PositiveInt = Field(default=50, description="latest items of a history that the mean is over")


class Vectors(Backbone):
    """Scores are dot products of the given vectors, which are saved as weights are.

    There is nothing to fit. Without `users` an empty history gives zeros.
    """

    items_VD: Tensor
    users_UD: Tensor

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.has_users = settings.users is not None
        self.history_length = 0 if self.has_users else settings.max_length
        self.register_buffer("items_VD", torch.zeros(self.num_items + 1, sizes["width"]))
        if self.has_users:
            self.register_buffer("users_UD", torch.zeros(self.num_users, sizes["width"]))

    @classmethod
    def build(cls, data: TopKData, settings: Settings) -> Self:  # type: ignore[override]
        """Raises UserError for a file that can't be used, or lacks items or users of the data."""
        items_ID, users_UD = given_vectors(data, settings)
        backbone = cls(settings, {**cls.sizes_of(data), "width": items_ID.shape[1]})
        backbone.items_VD[: data.num_items] = torch.from_numpy(items_ID)
        if users_UD is not None:
            backbone.users_UD.copy_(torch.from_numpy(users_UD))
        return backbone

    def batches(self, data: TopKData, rng: np.random.Generator) -> Iterator[Batch]:
        return iter(())

    def loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError("vectors from files have nothing to fit.")

    def user_vectors(self, users_B: Tensor, histories_BL: Tensor) -> Tensor:
        if self.has_users:
            return self.users_UD[users_B]
        latest_BL = histories_BL[:, -self.history_length :]
        return F.embedding_bag(latest_BL, self.items_VD, mode="mean", padding_idx=self.num_items)

    def item_vectors(self) -> Tensor:
        return self.items_VD[: self.num_items]


def input_files(settings: Settings) -> list[Path]:
    """The files that the vectors come from; a relative path is relative to the working folder."""
    names = (settings.items, settings.users)
    return [Path(name).expanduser() for name in names if name is not None]


def given_vectors(data: TopKData, settings: Settings) -> tuple[np.ndarray, np.ndarray | None]:
    """float32 vectors of all items (I, D) and, where a file is named, of all users (U, D)."""
    tables, files = data.known_tables(settings.model), input_files(settings)
    zeros = settings.missing == "zero"
    items_ID = vectors_of("items", files[0], tables.items["item_key"], zeros)
    if settings.users is None:
        return items_ID, None
    users_UD = vectors_of("users", files[1], tables.users["user_key"], zeros)
    if users_UD.shape[1] != items_ID.shape[1]:
        raise UserError(
            f"users = '{files[1]}': the vectors are {users_UD.shape[1]} wide, those of the items "
            f"{items_ID.shape[1]}: give both the same width."
        )
    return items_ID, users_UD
