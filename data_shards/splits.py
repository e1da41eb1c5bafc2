"""Leave-one-out splits by time, one for top-k recommendation and one for rating prediction.

Shapes: N interactions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recloom.data_shards.errors import UserError
from recloom.data_shards.tables import Tables

MIN_ROWS = 3
NEITHER, TRAIN, VALID, TEST = range(4)


@dataclass(frozen=True)
class Interactions:
    """Columns of equal length, sorted by user, then time.

    rating_N is nan where the data set has no ratings. order_N is the row in `Tables.interactions`:
    it grows with time within a user, is never tied, and finds the row's timestamp or review.
    """

    user_N: np.ndarray
    item_N: np.ndarray
    rating_N: np.ndarray
    order_N: np.ndarray

    def __len__(self) -> int:
        return len(self.user_N)

    def select(self, mask_N: np.ndarray) -> Interactions:
        """The rows that a boolean mask (or an ascending index array) picks."""
        return Interactions(
            self.user_N[mask_N], self.item_N[mask_N], self.rating_N[mask_N], self.order_N[mask_N]
        )

    def sequences(self, num_users: int) -> list[np.ndarray]:
        """The items of every user in time order, empty for a user without rows."""
        start_U = np.searchsorted(self.user_N, np.arange(1, num_users))
        return np.split(self.item_N, start_U)


def merged(first: Interactions, second: Interactions) -> Interactions:
    """Both parts' rows, a user's in time order."""
    columns = zip(vars(first).values(), vars(second).values(), strict=True)
    rows = Interactions(*(np.concatenate(pair) for pair in columns))
    return rows.select(np.lexsort((rows.order_N, rows.user_N)))


@dataclass(frozen=True)
class Split:
    """Training rows, and at most one validation and one test row a user."""

    train: Interactions
    valid: Interactions
    test: Interactions


@dataclass(frozen=True)
class Splits:
    topk: Split
    rating: Split


def all_interactions(tables: Tables) -> Interactions:
    """The interactions of `tables` as arrays."""
    rows = tables.interactions
    num_rows = rows.num_rows
    rating_N = rows["rating"].to_numpy() if tables.has_ratings else np.full(num_rows, np.nan)
    return Interactions(
        rows["user"].to_numpy(), rows["item"].to_numpy(), rating_N.astype(np.float32), np.arange(num_rows)
    )


def leave_one_out(tables: Tables, positive_rating: float | None) -> Splits:
    """Last row of a user = test, the one before = validation, the rest = train.

    topk counts only rows with rating >= positive_rating (None: every row), rating counts all rows. A
    user with fewer than three rows that count gives training rows only. A row that is validation or
    test of either task trains neither, since both tasks feed one language model. Raises UserError
    when positive_rating is set and there are no ratings, or none reaches it.
    """
    rows = all_interactions(tables)
    topk_N, rating_N = split_labels(rows.user_N, positive_mask(tables, rows, positive_rating))
    return Splits(topk=make_split(rows, topk_N), rating=make_split(rows, rating_N))


def split_labels(user_N: np.ndarray, positive_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """NEITHER, TRAIN, VALID or TEST of every row, for top-k and for rating, int8 (N,): the rule of
    `leave_one_out`.

    Rows are sorted by user, then time. A user's labels depend on that user's rows alone.
    """
    from_end = [held_out_rank(user_N, counts_N) for counts_N in (positive_N, np.ones(len(user_N), bool))]
    free_N = (from_end[0] == 0) & (from_end[1] == 0)
    topk_N, rating_N = (
        np.select([train_N & free_N, from_end_N == 2, from_end_N == 1], [TRAIN, VALID, TEST], NEITHER)
        for train_N, from_end_N in zip((positive_N, True), from_end, strict=True)
    )
    return topk_N.astype(np.int8), rating_N.astype(np.int8)


def make_split(rows: Interactions, label_N: np.ndarray) -> Split:
    """The rows of each label."""
    return Split(rows.select(label_N == TRAIN), rows.select(label_N == VALID), rows.select(label_N == TEST))


def positive_mask(tables: Tables, rows: Interactions, positive_rating: float | None) -> np.ndarray:
    """True for the rows that count for top-k."""
    if positive_rating is None:
        return np.ones(len(rows), bool)
    if not tables.has_ratings:
        raise UserError(
            f"positive_rating is {positive_rating:g}, but {tables.name} has no ratings: set it to null."
        )
    positive_N = rows.rating_N >= positive_rating
    if not positive_N.any():
        raise UserError(
            f"positive_rating is {positive_rating:g}, but the highest rating of {tables.name} is "
            f"{rows.rating_N.max():g}: lower it or set it to null."
        )
    return positive_N


def held_out_rank(user_N: np.ndarray, counts_N: np.ndarray) -> np.ndarray:
    """1 for a user's last row that counts, 2 for the one before, 0 for all others.

    Also 0 for every row of a user with fewer than three rows that count.
    """
    index_M = np.flatnonzero(counts_N)
    user_M = user_N[index_M]
    total_U = np.bincount(user_M)
    end_M = np.cumsum(total_U)[user_M]
    from_end_M = end_M - np.arange(len(user_M))
    from_end_M[(from_end_M > 2) | (total_U[user_M] < MIN_ROWS)] = 0
    rank_N = np.zeros(len(user_N), np.int64)
    rank_N[index_M] = from_end_M
    return rank_N
