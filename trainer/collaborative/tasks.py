"""The three kinds of backbone: how each draws its batches and, for direct ones, the BPR loss.

Shapes: B users, N examples of a batch, T triples of an epoch, L history length, I items,
V rows of a table.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recloom.trainer.collaborative.base import Backbone, Batch, Sizes
from recloom.trainer.collaborative.data import RatingData, TopKData, pad_histories


def epoch_order(count: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The rows of every batch of one shuffled epoch; the last batch may be smaller."""
    order = rng.permutation(count)
    for start in range(0, count, batch_size):
        yield order[start : start + batch_size]


class NegativeSampler:
    """Uniform draws from the items outside a user's training items, exact and without rejection.

    The r-th item (from 0) outside the sorted set s_0 < s_1 < ... is r + #{j : s_j - j <= r}. One sorted
    array with the keys user * (I + 1) + s_j - j answers it for all users by binary search.
    """

    def __init__(self, sequences: list[np.ndarray], num_items: int) -> None:
        sets = [np.unique(items).astype(np.int64) for items in sequences]
        self.size_U = np.array([len(items) for items in sets])
        self.start_U = np.cumsum(self.size_U) - self.size_U
        self.num_items = num_items
        keys = [user * (num_items + 1) + s - np.arange(len(s)) for user, s in enumerate(sets)]
        self.keys = np.concatenate(keys)

    def sample(self, users_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One negative a row; every user must have at least one."""
        rank_N = rng.integers(0, self.num_items - self.size_U[users_N])
        below_N = np.searchsorted(self.keys, users_N * (self.num_items + 1) + rank_N, side="right")
        return rank_N + below_N - self.start_U[users_N]


def epoch_triples(data: TopKData, sampler: NegativeSampler, rng: np.random.Generator) -> np.ndarray:
    """D' of Llama4Rec's eq. (3), (T, 3): each training pair with a fresh negative, then the extra pairs.

    A user who has every item has no negative and gives no triple.
    """
    users_N = np.repeat(np.arange(data.num_users), [len(items) for items in data.sequences])
    items_N = np.concatenate(data.sequences).astype(np.int64)
    keep_N = sampler.size_U[users_N] < data.num_items
    users_N, items_N = users_N[keep_N], items_N[keep_N]
    triples_T3 = np.stack([users_N, items_N, sampler.sample(users_N, rng)], axis=1)
    if data.extra_pairs is None:
        return triples_T3
    return np.concatenate([triples_T3, data.extra_pairs.astype(np.int64)])


def bpr_loss(positive_N: Tensor, negative_N: Tensor) -> Tensor:
    """Eq. (2) of Llama4Rec, averaged over the batch: mean of -log sigmoid(y_ui - y_uj)."""
    return -F.logsigmoid(positive_N - negative_N).mean()


class DirectBackbone(Backbone):
    """Ranks by the dot product of a user's and an item's vector, trained with BPR (Rendle et al. 2009).

    weight_decay is not Adam's: it weighs the squared norm of the batch's ego embeddings.
    """

    @abstractmethod
    def all_vectors(self) -> tuple[Tensor, Tensor]:
        """Final vectors of all users (U, D) and all items (I, D)."""

    @abstractmethod
    def ego_vectors(self) -> tuple[Tensor, Tensor]:
        """The trainable embeddings of all users and all items that the L2 penalty applies to."""

    def batches(self, data: TopKData, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of (users_N, positives_N, negatives_N)."""
        triples_T3 = epoch_triples(data, NegativeSampler(data.sequences, data.num_items), rng)
        for rows in epoch_order(len(triples_T3), self.settings.batch_size, rng):
            yield tuple(torch.from_numpy(triples_T3[rows]).unbind(1))

    def loss(self, batch: Batch) -> Tensor:
        """BPR plus weight_decay * half the mean squared norm of the three ego embeddings."""
        users_N, positives_N, negatives_N = batch
        users_UD, items_ID = self.all_vectors()
        # F.embedding, not indexing: its backward is deterministic on several threads
        users_ND = F.embedding(users_N, users_UD)
        pairs_2ND = F.embedding(torch.stack([positives_N, negatives_N]), items_ID)
        positive_N, negative_N = (users_ND * pairs_2ND).sum(2)
        return bpr_loss(positive_N, negative_N) + self.settings.weight_decay * self.penalty(batch)

    def penalty(self, batch: Batch) -> Tensor:
        """By the number of times that each row occurs: no second gather of the rows."""
        users_N, positives_N, negatives_N = batch
        ids = (users_N, torch.cat([positives_N, negatives_N]))
        total = torch.zeros(())
        for ids_M, table_VD in zip(ids, self.ego_vectors(), strict=True):
            count_V = torch.bincount(ids_M, minlength=len(table_VD)).to(table_VD.dtype)
            total = total + count_V @ table_VD.square().sum(1)
        return total / (2 * len(users_N))

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.settings.learning_rate, fused=True)

    def user_vectors(self, users_B: Tensor, histories_BL: Tensor) -> Tensor:
        return self.all_vectors()[0][users_B]

    def item_vectors(self) -> Tensor:
        return self.all_vectors()[1]

    def score(self, users_B: Tensor, histories_BL: Tensor) -> Tensor:
        users_UD, items_ID = self.all_vectors()
        return users_UD[users_B] @ items_ID.T


class SequentialBackbone(Backbone):
    """Predicts the next item; sets `history_length`.

    A sequence longer than history_length is cut into windows, at an offset that changes with the
    epoch, so that old items train too and no position sees always the same cut.
    """

    def optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        return torch.optim.Adam(
            self.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )

    def batches(self, data: TopKData, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of (inputs_BL, targets_BL), both padded on the left with num_items."""
        windows = [window for items in data.sequences for window in self.windows(items, rng)]
        padded = pad_histories(windows, self.history_length + 1, self.num_items)
        for rows in epoch_order(len(windows), self.settings.batch_size, rng):
            yield padded[rows, :-1], padded[rows, 1:]

    def windows(self, items: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Pieces of at most history_length + 1 items that together make every item but the first a target."""
        length = self.history_length
        first = int(rng.integers(1, length + 1)) if len(items) > length + 1 else len(items) - 1
        ends = [*range(first, len(items) - 1, length), len(items) - 1]
        return [items[max(0, end - length) : end + 1] for end in ends if end > 0]


class RatingBackbone(Backbone):
    """Predicts a rating from ids and attributes."""

    @classmethod
    def sizes_of(cls, data: RatingData) -> Sizes:
        low, high = data.rating_range
        return {**super().sizes_of(data), "low": low, "high": high}

    def batches(self, data: RatingData, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of (users_N, items_N, ratings_N)."""
        train = data.train
        columns = (train.user_N.astype(np.int64), train.item_N.astype(np.int64), train.rating_N)
        for rows in epoch_order(len(train), self.settings.batch_size, rng):
            yield tuple(torch.from_numpy(column[rows]) for column in columns)

    def score(self, users_B: Tensor, histories_BL: Tensor) -> Tensor:
        """Predicted ratings of the full catalogue (B, I)."""
        users_N = users_B.repeat_interleave(self.num_items)
        items_N = torch.arange(self.num_items).repeat(len(users_B))
        return self.predict_rating(users_N, items_N).view(len(users_B), self.num_items)

    @abstractmethod
    def predict_rating(self, users_N: Tensor, items_N: Tensor) -> Tensor: ...
