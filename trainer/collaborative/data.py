"""What a backbone is fitted on, made from a split.

Shapes: U users, B users of a query, P pairs, L history length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recloom.data_shards.errors import UserError
from recloom.data_shards.splits import Interactions, Split
from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.features import FeatureTable, encode_features

NO_ITEM = -1


@dataclass(frozen=True)
class TopKData:
    """Training data of direct and sequential backbones.

    sequences: a user's training items in time order, with those that an LLM added, if any.
    valid_items: (U,) int64, NO_ITEM for a user without one.
    seen: items masked at validation, one array a user.
    extra_pairs: (P, 3) rows of (user, preferred item, other item), added to the BPR triples
    (Llama4Rec, eq. 3).
    histories: the history shown at validation; None shows `sequences`. Set it to the real items when
    `sequences` were augmented.
    tables: what the ids stand for, for backbones that read titles or keys (`known_tables`).
    """

    num_users: int
    num_items: int
    sequences: list[np.ndarray]
    valid_items: np.ndarray
    seen: list[np.ndarray]
    extra_pairs: np.ndarray | None = None
    histories: list[np.ndarray] | None = None
    tables: Tables | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.sequences), len(self.seen), len(self.valid_items), self.num_users}
        if len(lengths) > 1:
            raise ValueError(f"sequences, seen and valid_items need one entry a user, got {lengths}.")
        if not any(len(items) for items in self.sequences):
            raise UserError("top-k data: no training interactions: lower positive_rating, or use more data.")
        if self.extra_pairs is not None and (self.extra_pairs.ndim, self.extra_pairs.shape[-1]) != (2, 3):
            raise ValueError(f"extra_pairs is (P, 3), got {self.extra_pairs.shape}.")

    def known_tables(self, model: str) -> Tables:
        """`tables`, for the backbone named `model`, which cannot do without."""
        if self.tables is None:
            raise UserError(
                f"model = '{model}': it reads titles or keys of items, which this recipe does not hand on: "
                "choose another backbone."
            )
        return self.tables

    @classmethod
    def from_split(
        cls, split: Split, num_users: int, num_items: int, tables: Tables | None = None
    ) -> TopKData:
        """The plain data of a split: the training items are the sequences and are masked at validation."""
        sequences = split.train.sequences(num_users)
        valid_items = np.full(num_users, NO_ITEM, dtype=np.int64)
        valid_items[split.valid.user_N] = split.valid.item_N
        return cls(num_users, num_items, sequences, valid_items, seen=sequences, tables=tables)


@dataclass(frozen=True)
class RatingData:
    """Training data of rating backbones; rating_range is the lowest and highest rating, in stars."""

    num_users: int
    num_items: int
    user_features: FeatureTable
    item_features: FeatureTable
    train: Interactions
    valid: Interactions
    rating_range: tuple[float, float]

    def __post_init__(self) -> None:
        ratings_N = self.train.rating_N
        if len(ratings_N) == 0 or np.isnan(ratings_N).any():
            raise UserError("rating data: every training row needs a rating: use a data set with ratings.")

    @classmethod
    def from_split(cls, tables: Tables, split: Split) -> RatingData:
        """The rating data of a split, with the attribute columns of `tables` as features."""
        ratings_N = split.train.rating_N
        return cls(
            tables.num_users,
            tables.num_items,
            encode_features(tables.users, skip=("user", "user_key")),
            encode_features(tables.items, skip=("item", "item_key", "title")),
            split.train,
            split.valid,
            (float(ratings_N.min(initial=np.inf)), float(ratings_N.max(initial=-np.inf))),
        )


class Queries(NamedTuple):
    """Users to rank for; row b of every field belongs to users_B[b]."""

    users_B: np.ndarray
    histories: list[np.ndarray]
    seen: list[np.ndarray]
    targets_B: np.ndarray


def leave_one_out_queries(split: Split, num_users: int, part: Literal["valid", "test"]) -> Queries:
    """The validation or test queries; at test, history and mask include the validation item."""
    histories = split.train.sequences(num_users)
    if part == "test":
        valid = split.valid.sequences(num_users)
        histories = [np.concatenate(pair) for pair in zip(histories, valid, strict=True)]
    rows = split.valid if part == "valid" else split.test
    past = [histories[user] for user in rows.user_N]
    return Queries(rows.user_N.astype(np.int64), past, past, rows.item_N.astype(np.int64))


def pad_histories(histories: Sequence[np.ndarray], length: int, padding: int) -> Tensor:
    """The last `length` items of every history, padded on the left: histories_BL, int64."""
    kept = [items[max(0, len(items) - length) :] for items in histories]
    length_B = np.array([len(items) for items in kept], dtype=np.int64)
    padded_BL = np.full((len(histories), length), padding, dtype=np.int64)
    if length_B.any():
        padded_BL[np.arange(length) >= length - length_B[:, None]] = np.concatenate(kept)
    return torch.from_numpy(padded_BL)
