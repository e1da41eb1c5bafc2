"""What the rating backbones share: the fields of a pair, their embeddings, and the first-order term.

A pair's fields are the user id, the user's attributes, the item id and the item's attributes. A
backbone on top of it (deepfm.py, nfm.py, ...) adds its way of combining the field embeddings.

Shapes: N pairs, B users, F fields, D embedding width, S slots of values, E rows of a feature table,
V values in one numbering (0 is the unused slot), P pairs of fields.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import BackboneSettings, Batch, Sizes
from recloom.trainer.collaborative.data import RatingData
from recloom.trainer.collaborative.features import FeatureTable
from recloom.trainer.collaborative.tasks import RatingBackbone

Dropout = Annotated[float, Field(ge=0, lt=1)]


class FieldSettings(BackboneSettings):
    """Defaults that fit rating data of a hundred thousand to a million rows."""

    embedding: PositiveInt = 4
    learning_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 3e-5
    batch_size: PositiveInt = 2048
    max_epochs: PositiveInt = 60
    patience: PositiveInt = 4
    dropout: Dropout = 0.0


class Side(nn.Module):
    """The values of one side's fields, user or item: the id first, then the attributes."""

    index_ES: Tensor
    weight_ES: Tensor
    field_SF: Tensor

    def __init__(self, num_rows: int, num_slots: int, num_fields: int) -> None:
        super().__init__()
        self.register_buffer("index_ES", torch.zeros(num_rows, num_slots + 1, dtype=torch.int64))
        self.register_buffer("weight_ES", torch.zeros(num_rows, num_slots + 1))
        self.register_buffer("field_SF", torch.zeros(num_slots + 1, num_fields + 1))

    def attach(self, features: FeatureTable, first: int) -> None:
        """Number the ids from `first`, the attribute values after them."""
        num_rows = len(features.index_ES)
        ids_E = torch.arange(first, first + num_rows)
        index_ES = torch.from_numpy(features.index_ES)
        shifted_ES = torch.where(index_ES > 0, index_ES + first + num_rows - 1, 0)
        self.index_ES.copy_(torch.cat([ids_E[:, None], shifted_ES], 1))
        weights_ES = torch.from_numpy(features.weight_ES)
        self.weight_ES.copy_(torch.cat([torch.ones(num_rows, 1), weights_ES], 1))
        field_S = torch.cat([torch.zeros(1, dtype=torch.int64), torch.from_numpy(features.field_S) + 1])
        self.field_SF.copy_(nn.functional.one_hot(field_S, self.field_SF.shape[1]).float())

    def forward(self, table: nn.Embedding, rows_N: Tensor) -> Tensor:
        """Field embeddings (N, F, D); a bag of values is averaged."""
        slots_NSD = table(self.index_ES[rows_N]) * self.weight_ES[rows_N][:, :, None]
        return torch.einsum("nsd,sf->nfd", slots_NSD, self.field_SF)


class FieldBackbone(RatingBackbone):
    """Field embeddings, bias and first order; a subclass builds its layers and writes `forward`.

    The loss is the squared error in stars; there is no sigmoid. `num_fields` is F.
    """

    def __init__(self, settings: FieldSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        user_fields, item_fields = sizes["user_fields"], sizes["item_fields"]
        self.num_fields: int = user_fields + item_fields + 2
        self.user_side = Side(self.num_users, sizes["user_slots"], user_fields)
        self.item_side = Side(self.num_items, sizes["item_slots"], item_fields)
        self.linear = nn.Embedding(sizes["num_values"], 1, padding_idx=0)
        self.factors = nn.Embedding(sizes["num_values"], settings.embedding, padding_idx=0)
        self.bias = nn.Parameter(torch.zeros(()))

    @classmethod
    def sizes_of(cls, data: RatingData) -> Sizes:
        users, items = data.user_features, data.item_features
        num_values = data.num_users + users.num_values + data.num_items + items.num_values - 1
        return {
            **super().sizes_of(data),
            "user_slots": len(users.field_S),
            "user_fields": len(users.fields),
            "item_slots": len(items.field_S),
            "item_fields": len(items.fields),
            "num_values": num_values,
        }

    def attach(self, data: RatingData) -> None:
        """Take the feature tables; start the bias at the mean training rating, the embeddings near 0."""
        self.user_side.attach(data.user_features, 1)
        self.item_side.attach(data.item_features, data.num_users + data.user_features.num_values)
        nn.init.zeros_(self.linear.weight)
        nn.init.normal_(self.factors.weight, std=0.05)
        with torch.no_grad():
            self.bias.fill_(float(data.train.rating_N.mean()))

    def fields(self, table: nn.Embedding, users_N: Tensor, items_N: Tensor) -> Tensor:
        """Embeddings (N, F, D) of the pairs' fields."""
        return torch.cat([self.user_side(table, users_N), self.item_side(table, items_N)], dim=1)

    def first_order(self, users_N: Tensor, items_N: Tensor) -> Tensor:
        """Bias plus the weights of the pair's values (N,)."""
        return self.bias + self.fields(self.linear, users_N, items_N).sum((1, 2))

    @abstractmethod
    def forward(self, users_N: Tensor, items_N: Tensor) -> Tensor:
        """Unbounded predictions (N,)."""

    def loss(self, batch: Batch) -> Tensor:
        users_N, items_N, ratings_N = batch
        return nn.functional.mse_loss(self(users_N, items_N), ratings_N)

    def predict_rating(self, users_N: Tensor, items_N: Tensor) -> Tensor:
        return self(users_N, items_N).clamp(self.sizes["low"], self.sizes["high"])

    def user_vectors(self, users_B: Tensor, histories_BL: Tensor) -> Tensor:
        """The embeddings of the user's fields, side by side."""
        return self.user_side(self.factors, users_B).flatten(1)

    def item_vectors(self) -> Tensor:
        """The embeddings of the item's fields, side by side."""
        return self.item_side(self.factors, torch.arange(self.num_items)).flatten(1)


def bi_interaction(factors_NFD: Tensor) -> Tensor:
    """Sum (N, D) of v_f * v_g over pairs of fields f < g: half of (square of sum - sum of squares)."""
    return 0.5 * (factors_NFD.sum(1).square() - factors_NFD.square().sum(1))


def hidden_layers(widths: Sequence[int], dropout: float) -> list[nn.Module]:
    """The layers of a deep part: Linear, ReLU and Dropout from each width to the next."""
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return layers
