"""What Laser learns from and asks: the leave-one-out split, cut to the samples that the config wants.

Shapes: N rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from recloom.data_shards.errors import UserError
from recloom.data_shards.splits import Splits
from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.data import Queries, leave_one_out_queries
from recloom.trainer.preparation import load_data
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser.settings import LaserConfig, LearnBlock

# One stream of draws each.
SHARE_NUMBER, LEARNED_NUMBER, VALID_NUMBER, TEST_NUMBER, SAMPLES_NUMBER = 50, 51, 52, 53, 54


@dataclass(frozen=True)
class Example:
    """The item that follows a history (oldest first)."""

    user: int
    history: np.ndarray
    target: int


@dataclass(frozen=True)
class Task:
    """`splits` holds the share that is learned from; examples are samples of it, tests of all users."""

    tables: Tables
    splits: Splits
    train: list[Example]
    valid: list[Example]
    test: list[Example]


def load_task(run: Run[LaserConfig]) -> Task:
    """The prepared data as the config cuts them. Raises UserError when nothing is left to learn from."""
    tables, whole = load_data(run)
    learn = run.config.learn
    splits = learned_share(whole, tables.num_users, learn)
    train = training_examples(splits.topk.train.sequences(tables.num_users), learn)
    valid = asked_examples(leave_one_out_queries(splits.topk, tables.num_users, "valid"), learn, "validation")
    test = asked_examples(leave_one_out_queries(whole.topk, tables.num_users, "test"), learn, "test")
    for part, found in (("learn", train), ("validate", valid), ("test", test)):
        if not found:
            raise UserError(f"data: no user has enough items to {part} on: use more data, or raise learn.*.")
    return Task(tables, splits, train, valid, test)


def learned_share(splits: Splits, num_users: int, learn: LearnBlock) -> Splits:
    """Rows to learn from and to select on of a share of the users; all test rows."""
    if learn.share == 1:
        return splits
    count = int(np.ceil(learn.share * num_users))
    chosen_U = np.zeros(num_users, bool)
    chosen_U[first_of(num_users, count, learn.seed, SHARE_NUMBER)] = True
    topk = splits.topk
    train, valid = (rows.select(chosen_U[rows.user_N]) for rows in (topk.train, topk.valid))
    return replace(splits, topk=replace(topk, train=train, valid=valid))


def training_examples(sequences: list[np.ndarray], learn: LearnBlock) -> list[Example]:
    """The last training item of a user, or every one but the first; of all these maybe a sample."""
    users = np.flatnonzero([len(items) > 1 for items in sequences])
    found = []
    for user in first_of(len(users), learn.users, learn.seed, LEARNED_NUMBER):
        items = sequences[users[user]]
        first = 1 if learn.targets == "all" else len(items) - 1
        found += [
            Example(int(users[user]), items[:place], int(items[place])) for place in range(first, len(items))
        ]
    return [found[n] for n in first_of(len(found), learn.samples, learn.seed, SAMPLES_NUMBER)]


def asked_examples(queries: Queries, learn: LearnBlock, part: str) -> list[Example]:
    """Validation or test rows of users with a history, or a sample of them."""
    count = learn.validation if part == "validation" else learn.test
    number = VALID_NUMBER if part == "validation" else TEST_NUMBER
    rows = [row for row, history in enumerate(queries.histories) if len(history)]
    return [
        Example(int(queries.users_B[rows[n]]), queries.histories[rows[n]], int(queries.targets_B[rows[n]]))
        for n in first_of(len(rows), count, learn.seed, number)
    ]


def first_of(total: int, count: int | None, seed: int, number: int) -> list[int]:
    """`count` of `total` in rising order, a head of one seeded order: a larger sample holds the smaller."""
    order = np.random.default_rng([seed, number]).permutation(total)
    chosen: list[int] = np.sort(order[:count]).tolist()
    return chosen
