"""Sampled candidate lists: a user's target among items that the user never touched.

A-LLMRec asks for 1 + 19 (section 5.1), P5 for 1 + 99. Lists are drawn once with a seed, stored beside the
results as one file with a checksum, and are the same for every method and every scenario.

Shapes: N users with a target, C places of a list (the target and `count` others), n draws a user, K pairs of
a user and an item the user touched, L length of a ranking. NO_ITEM fills lists that are shorter.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recloom.data_shards.artifacts import atomic_write_bytes
from recloom.data_shards.errors import UserError
from recloom.data_shards.splits import Interactions, Splits

Part = Literal["valid", "test"]
PART_NUMBER = {"valid": 1, "test": 2}
NO_ITEM = -1
FORMAT = "recloom candidates 1"
REMAKE = "delete the file and draw the candidates again."
REDRAW = "they were drawn from other data; delete their file and draw them again."


@dataclass(frozen=True)
class Candidates:
    """One list a user, users ascending; place_N is the column of the target, items_NC ends in NO_ITEM."""

    part: Part
    seed: int
    num_items: int
    users_N: np.ndarray
    place_N: np.ndarray
    items_NC: np.ndarray

    def __len__(self) -> int:
        return len(self.users_N)

    @property
    def count(self) -> int:
        """How many others stand beside the target where the catalogue has enough."""
        return self.items_NC.shape[1] - 1

    @property
    def targets_N(self) -> np.ndarray:
        return np.take_along_axis(self.items_NC, self.place_N[:, None], axis=1)[:, 0]

    def of(self, rows: Interactions) -> Candidates:
        """The lists of some rows, in their order; raises UserError where a row has none or another target."""
        place_N = np.searchsorted(self.users_N, rows.user_N).clip(max=max(len(self) - 1, 0))
        if len(rows) and not (len(self) and np.array_equal(self.users_N[place_N], rows.user_N)):
            raise UserError(f"candidates: a user of the {self.part} rows has no list: {REDRAW}")
        columns = (self.users_N, self.place_N, self.items_NC)
        chosen = Candidates(self.part, self.seed, self.num_items, *(column[place_N] for column in columns))
        if not np.array_equal(chosen.targets_N, rows.item_N):
            raise UserError(f"candidates: a list's target is not the {self.part} row's item: {REDRAW}")
        return chosen

    def save(self, path: Path) -> None:
        """A line of JSON with the checksum, then rows of little-endian int32: user, place, items."""
        columns = [self.users_N, self.place_N, self.items_NC]
        data = np.column_stack(columns).astype("<i4").tobytes()
        header = {"format": FORMAT, "part": self.part, "seed": self.seed, "num_items": self.num_items}
        header |= {"users": len(self), "count": self.count}
        header["sha256"] = checksum(header, data)
        atomic_write_bytes(path, json.dumps(header, sort_keys=True).encode() + b"\n" + data)


def checksum(header: Mapping[str, Any], data: bytes) -> str:
    """Over every field of the header and the rows."""
    fields = {name: value for name, value in header.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode() + b"\n" + data).hexdigest()


def load_candidates(path: Path) -> Candidates:
    """Read what `save` wrote; raises UserError for a file that is missing, foreign or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such file: draw the candidates first.")
    line, _, data = path.read_bytes().partition(b"\n")
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(f"{path}: the first line is no header of '{FORMAT}': {REMAKE}")
    if header.get("sha256") != checksum(header, data):
        raise UserError(f"{path}: the checksum differs from the header's, the file is damaged: {REMAKE}")
    rows = np.frombuffer(data, "<i4").reshape(header["users"], header["count"] + 3).astype(np.int64)
    fields = (header["part"], header["seed"], header["num_items"])
    return Candidates(*fields, users_N=rows[:, 0], place_N=rows[:, 1], items_NC=rows[:, 2:])


def stored_candidates(
    path: Path, splits: Splits, part: Part, num_items: int, count: int = 19, seed: int = 0
) -> Candidates:
    """The lists of `path`, drawn and saved there first if absent.

    Raises UserError when they were drawn otherwise than asked, for other targets, or hold a user's own item.
    """
    if not path.exists():
        sampled_candidates(splits, part, num_items, count, seed).save(path)
    found = load_candidates(path)
    for field, asked in {"part": part, "seed": seed, "num_items": num_items, "count": count}.items():
        if getattr(found, field) != asked:
            drawn = f"drawn with {field} = {getattr(found, field)}, asked for {asked}"
            raise UserError(f"{path}: {drawn}: ask as they were drawn, or {REMAKE}")
    found.of(getattr(splits.topk, part))
    other_NC = np.where(found.items_NC == found.targets_N[:, None], NO_ITEM, found.items_NC)
    keys_NC = np.where(other_NC == NO_ITEM, NO_ITEM, found.users_N[:, None] * num_items + other_NC)
    if np.isin(keys_NC, own_keys(splits, num_items)).any():
        raise UserError(f"{path}: a list holds an item that its user touched: {REDRAW}")
    return found


def sampled_candidates(
    splits: Splits, part: Part, num_items: int, count: int = 19, seed: int = 0
) -> Candidates:
    """Each user's top-k target of `part` among `count` items the user never touched, shuffled.

    Excluded is every item of a user's rows in any part of either task, disliked ones too. A user's list
    depends on the seed, the part, the user's id and items alone. Too few free items: all of them are taken.
    """
    if count < 1 or seed < 0:
        raise UserError(f"candidates: count = {count}, seed = {seed}: count must be at least 1, seed 0.")
    rows = getattr(splits.topk, part)
    users_N, own_K = rows.user_N.astype(np.int64), own_keys(splits, num_items)
    draws = user_draws(users_N, 2 * count + 1, [seed, PART_NUMBER[part]])
    start_N = np.searchsorted(own_K, users_N * num_items)
    free_N = num_items - (np.searchsorted(own_K, (users_N + 1) * num_items) - start_N)
    tell_short(free_N, count, part)
    others = nth_free(users_N, distinct_below(free_N, draws[:, :count]), own_K, start_N, num_items)
    items_NC = np.column_stack([rows.item_N.astype(np.int64), others])
    order_NC = np.argsort(np.where(items_NC == NO_ITEM, np.inf, draws[:, count:]), axis=1, kind="stable")
    items_NC = np.take_along_axis(items_NC, order_NC, axis=1)
    return Candidates(part, seed, num_items, users_N, np.argmin(order_NC, axis=1), items_NC)


def drawn_lists(splits: Splits, num_items: int, seed: int, count: int = 19) -> dict[Part, Candidates]:
    """The lists of validation and test; the negatives of the two are drawn apart."""
    parts: tuple[Part, ...] = ("valid", "test")
    return {part: sampled_candidates(splits, part, num_items, count, seed) for part in parts}


def all_parts(splits: Splits) -> list[Interactions]:
    """Training, validation and test rows of both tasks: together every interaction of the data set."""
    return [rows for split in (splits.topk, splits.rating) for rows in (split.train, split.valid, split.test)]


def own_keys(splits: Splits, num_items: int) -> np.ndarray:
    """user * num_items + item of every pair in any part of either task, ascending, once each: (K,)."""
    parts = all_parts(splits)
    if any((rows.item_N >= num_items).any() for rows in parts):
        raise ValueError(f"num_items = {num_items}, but the splits name a larger item.")
    return np.unique(
        np.concatenate([rows.user_N.astype(np.int64) * num_items + rows.item_N for rows in parts])
    )


def user_draws(users_N: np.ndarray, n: int, seed: list[int]) -> np.ndarray:
    """Uniform numbers in [0, 1), (N, n): row u of one stream belongs to user u, whoever else is asked."""
    draws: np.ndarray = np.random.default_rng(seed).random((int(users_N.max(initial=-1)) + 1, n))
    return draws[users_N]


def distinct_below(bound_N: np.ndarray, draws_Nn: np.ndarray) -> np.ndarray:
    """n different integers in [0, bound) a user, every set equally likely: (N, n).

    Floyd's sampling without replacement (Bentley and Floyd, CACM 30(9), 1987), a step for all users at once.
    Where the bound is below n, all integers and then NO_ITEM.
    """
    n = draws_Nn.shape[1]
    wanted_N = np.minimum(bound_N, n)
    found_Nn = np.full(draws_Nn.shape, NO_ITEM, np.int64)
    for step in range(n):
        newest_N = bound_N - wanted_N + step
        guess_N = (draws_Nn[:, step] * (newest_N + 1)).astype(np.int64)
        again_N = (found_Nn[:, :step] == guess_N[:, None]).any(axis=1)
        found_Nn[:, step] = np.where(step < wanted_N, np.where(again_N, newest_N, guess_N), NO_ITEM)
    return found_Nn


def nth_free(
    users_N: np.ndarray, rank_Nn: np.ndarray, own_K: np.ndarray, start_N: np.ndarray, num_items: int
) -> np.ndarray:
    """The items that stand at places rank_Nn (from 0) among those a user never touched, NO_ITEM kept."""
    owner_K, item_K = np.divmod(own_K, num_items)
    before_K = np.arange(len(own_K)) - np.searchsorted(own_K, owner_K * num_items)
    # item - before: how many free items are smaller than a touched one; it is passed when rank reaches that
    passed_Nn = np.searchsorted(
        owner_K * num_items + item_K - before_K, users_N[:, None] * num_items + rank_Nn.clip(min=0), "right"
    )
    return np.where(rank_Nn == NO_ITEM, NO_ITEM, rank_Nn + passed_Nn - start_N[:, None])


def tell_short(free_N: np.ndarray, count: int, part: Part) -> None:
    short = int((free_N < count).sum())
    if short:
        warnings.warn(
            f"candidates: {short} of {len(free_N)} {part} users have fewer than {count} items that they "
            f"never touched (fewest {free_N.min()}): their lists hold as many as there are.",
            stacklevel=3,
        )


def score_ranks(scores_NC: np.ndarray, candidates: Candidates) -> np.ndarray:
    """The target's 1-based rank in its list by score, float64 (N,): what `trainer.metrics` takes.

    1 + the number of other candidates that do not score below the target: ties and nan count against it.
    """
    scores_NC = np.asarray(scores_NC)
    if scores_NC.shape != candidates.items_NC.shape:
        raise ValueError(f"scores are {scores_NC.shape}, the candidates {candidates.items_NC.shape}.")
    target_N1 = np.take_along_axis(scores_NC, candidates.place_N[:, None], axis=1)
    beats_NC = ~(scores_NC < target_N1) & (candidates.items_NC != NO_ITEM)
    np.put_along_axis(beats_NC, candidates.place_N[:, None], True, axis=1)
    return beats_NC.sum(axis=1).astype(np.float64)


def ranking_ranks(ranked_NL: np.ndarray, candidates: Candidates) -> np.ndarray:
    """The target's 1-based place in a ranking of items, best first; inf where it is missing.

    An entry that is no candidate, NO_ITEM for an answer that is no item, takes its place all the same.
    """
    if len(ranked_NL) != len(candidates):
        raise ValueError(f"{len(ranked_NL)} rankings for {len(candidates)} candidate lists.")
    found_NL = np.asarray(ranked_NL) == candidates.targets_N[:, None]
    first_N = found_NL.argmax(axis=1) if found_NL.shape[1] else np.zeros(len(found_NL))
    return np.where(found_NL.any(axis=1), first_N + 1.0, np.inf)
