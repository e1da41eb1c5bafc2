"""Scenarios: who may be learned from, and which test rows are asked (A-LLMRec, sections 5.2.1 to 5.2.5).

    overall           all training rows, all test rows
    warm, cold        the same training rows; test rows whose target is among the 35 % of items with the most
                      or the fewest training interactions
    cold_users        users with exactly three interactions: nothing of theirs is learned from or selected on;
                      the last is the target, the two before are the history
    few_shot_K        rows of K users alone are learned from and selected on; all test rows
    cross_domain      `cross_domain`: learned on one data set, asked on another

Each ranks the sampled candidates; with `_full` behind its name (`overall_full`) the whole catalogue.
All seeds are the scenarios' own: keep them when a run's seed changes, and its test stays the same.

Shapes: U users, I items, N rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recloom.data_shards.candidates import Candidates, Part, all_parts, drawn_lists
from recloom.data_shards.errors import UserError
from recloom.data_shards.sources.registry import did_you_mean
from recloom.data_shards.splits import Interactions, Split, Splits, merged
from recloom.data_shards.tables import Tables

GROUP_PERCENT = 35
COLD_USER_ROWS = 3
OVERALL, FULL = "overall", "_full"
FEW_SHOT = re.compile(r"few_shot_([1-9]\d*)")
PAPER_NAMES = (OVERALL, "warm", "cold", "cold_users", "few_shot_256", "few_shot_128")
FEW_SHOT_NUMBER, COLD_USERS_NUMBER = 3, 4  # beside the candidates' 1 and 2: one stream of draws each


@dataclass(frozen=True)
class Scenario:
    """`splits` stands in for the full ones: learn from train, select on valid, ask test, of either task.

    history: what may be shown of the asked users at test, in time order; their rows need not be in `splits`.
    valid, test: lists of the rows of splits.topk.valid and .test, in their order; None: the whole catalogue.
    """

    name: str
    splits: Splits
    history: Interactions
    valid: Candidates | None
    test: Candidates | None


class Slice(NamedTuple):
    """Which users may be learned from, which users are asked, which targets are asked."""

    learned_U: np.ndarray
    asked_U: np.ndarray
    target_I: np.ndarray


class Domain(NamedTuple):
    """One data set of a cross-domain pair."""

    tables: Tables
    splits: Splits


class CrossDomain(NamedTuple):
    """Learn from `source.splits` train, select on its valid; its test rows are not used.

    Then answer scenario.splits.topk.test: target's users with target's items, whose texts are in
    target.tables. Ids of the two have nothing in common: only text carries over. No row of the target may
    be learned from or selected on, so the scenario has none.
    """

    source: Domain
    target: Domain
    scenario: Scenario


def scenarios(
    splits: Splits,
    num_items: int,
    names: Sequence[str],
    seed: int = 0,
    drawn: Mapping[Part, Candidates] | None = None,
    truncated_cold_users: int = 0,
) -> dict[str, Scenario]:
    """The named scenarios of one data set. drawn: the stored lists; None draws 1 + 19 with the seed.

    truncated_cold_users: 0 takes the users with exactly three interactions; N samples N users and forgets
    all but their last three, for data sets whose filter leaves none. Raises UserError for an unknown name,
    and for a scenario that has nothing to learn from or to ask.
    """
    for name in names:
        check_name(name)
    if drawn is None and any(not name.endswith(FULL) for name in names):
        drawn = drawn_lists(splits, num_items, seed)
    found = {}
    for name in names:
        cut = make_slice(name.removesuffix(FULL), splits, num_items, seed, truncated_cold_users)
        found[name] = make_scenario(name, splits, cut, None if name.endswith(FULL) else drawn)
        check_rows(name, "training", found[name].splits.topk.train)
    return found


def check_name(name: str) -> None:
    if name.removesuffix(FULL) == "cross_domain":
        raise UserError("scenario is 'cross_domain', which needs two data sets: call cross_domain instead.")
    if name.removesuffix(FULL) not in PAPER_NAMES and not FEW_SHOT.fullmatch(name.removesuffix(FULL)):
        known = [*PAPER_NAMES, *(paper_name + FULL for paper_name in PAPER_NAMES)]
        raise UserError(
            f"scenario is {name!r}, no such scenario{did_you_mean(name, known)}: choose from "
            f"{', '.join(PAPER_NAMES)} (any K from 1), each also with {FULL} behind it."
        )


def make_slice(name: str, splits: Splits, num_items: int, seed: int, truncated_cold_users: int) -> Slice:
    """The users and items of one name, without `_full`."""
    users_U = np.ones(num_users(splits), bool)
    everything = Slice(users_U, users_U, np.ones(num_items, bool))
    if few_shot := FEW_SHOT.fullmatch(name):
        return everything._replace(learned_U=few_shot_users(splits, int(few_shot[1]), seed))
    if name == "cold_users":
        cold_U = cold_users(splits, seed, truncated_cold_users)
        return everything._replace(learned_U=~cold_U, asked_U=cold_U)
    if name in ("warm", "cold"):
        return everything._replace(target_I=item_groups(splits.topk.train, num_items)[name])
    return everything


def make_scenario(name: str, splits: Splits, cut: Slice, drawn: Mapping[Part, Candidates] | None) -> Scenario:
    cut_splits = Splits(cut_split(splits.topk, cut), cut_split(splits.rating, cut))
    topk = cut_splits.topk
    check_rows(name, "test", topk.test)
    history = merged(splits.topk.train, splits.topk.valid)
    history = history.select(np.isin(history.user_N, topk.test.user_N))
    if name.removesuffix(FULL) == "cold_users":
        history = last_rows(history, COLD_USER_ROWS - 1)
    if drawn is None:
        return Scenario(name, cut_splits, history, None, None)
    return Scenario(name, cut_splits, history, drawn["valid"].of(topk.valid), drawn["test"].of(topk.test))


def check_rows(name: str, what: str, rows: Interactions) -> None:
    if not len(rows):
        raise UserError(f"scenario {name!r} has no {what} rows in this data: leave it out, or use more data.")


def cut_split(split: Split, cut: Slice) -> Split:
    asked_N = cut.asked_U[split.test.user_N] & cut.target_I[split.test.item_N]
    train, valid = (rows.select(cut.learned_U[rows.user_N]) for rows in (split.train, split.valid))
    return Split(train, valid, split.test.select(asked_N))


def num_users(splits: Splits) -> int:
    """One above the largest user id that occurs."""
    return 1 + max(int(rows.user_N.max(initial=-1)) for rows in all_parts(splits))


def last_rows(rows: Interactions, count: int) -> Interactions:
    """The last `count` rows of every user."""
    end_N = np.searchsorted(rows.user_N, rows.user_N, side="right")
    return rows.select(end_N - np.arange(len(rows)) <= count)


def item_groups(train: Interactions, num_items: int) -> dict[str, np.ndarray]:
    """Masks `warm` and `cold`: the first and last 35 % of the catalogue by training rows, ties by item id.

    Section 5.2.2 says "top 35% of interactions"; read as 35 % of the items, rounded down. Items without a
    training row belong to the catalogue and are the coldest.
    """
    order_I = np.argsort(-np.bincount(train.item_N, minlength=num_items), kind="stable")
    size = num_items * GROUP_PERCENT // 100
    rank_I = np.empty(num_items, np.int64)
    rank_I[order_I] = np.arange(num_items)
    return {"warm": rank_I < size, "cold": rank_I >= num_items - size}


def cold_users(splits: Splits, seed: int = 0, truncated: int = 0) -> np.ndarray:
    """Mask over users held out as cold (section 5.2.3): (U,).

    The paper samples among users with exactly three interactions and does not say how many: all are taken.
    Truncated ones keep their last three, so target and candidates are those of `overall`.
    """
    train, test = splits.topk.train, splits.topk.test
    count_U = np.bincount(train.user_N, minlength=num_users(splits))
    tested_U = np.bincount(test.user_N, minlength=len(count_U)) > 0
    if truncated:
        return sampled_users(
            tested_U & (count_U > 0), truncated, [seed, COLD_USERS_NUMBER], "truncated_cold_users"
        )
    cold_U = tested_U & (count_U == COLD_USER_ROWS - 2)
    if not cold_U.any():
        raise UserError(
            "scenario 'cold_users': no user has exactly three interactions: set truncated_cold_users to the "
            "number of users to cut down to three."
        )
    return cold_U


def few_shot_users(splits: Splits, k: int, seed: int = 0) -> np.ndarray:
    """Mask over K users with training and validation rows (section 5.2.4): (U,); smaller K are subsets.

    The paper speaks of "unseen/new items at the inference stage" and changes only the training set: the test
    is that of `overall`, all users with their whole history.
    """
    train, valid = splits.topk.train, splits.topk.valid
    can_U = np.isin(np.arange(num_users(splits)), np.intersect1d(train.user_N, valid.user_N))
    return sampled_users(can_U, k, [seed, FEW_SHOT_NUMBER], f"scenario 'few_shot_{k}'")


def sampled_users(can_U: np.ndarray, count: int, seed: list[int], field: str) -> np.ndarray:
    """Mask of `count` of the users that can be taken."""
    users = np.flatnonzero(can_U)
    if not 0 < count <= len(users):
        raise UserError(f"{field}: {count} users asked for, must lie in 1..{len(users)}: ask for fewer.")
    chosen_U = np.zeros(len(can_U), bool)
    chosen_U[np.random.default_rng(seed).permutation(users)[:count]] = True
    return chosen_U


def cross_domain(
    source: Domain, target: Domain, seed: int = 0, drawn: Mapping[Part, Candidates] | None = None
) -> CrossDomain:
    """Learn on one data set, answer another's test rows (section 5.2.5: Movies and TV, then Video Games).

    Raises UserError when both are the same data, or have the same name, by which results are told apart.
    """
    names = source.tables.name, target.tables.name
    if names[0] == names[1] or source.tables.interactions.equals(target.tables.interactions):
        raise UserError(
            f"cross_domain: the source is {names[0]!r} and the target {names[1]!r}: they must be two data "
            "sets with names of their own: name another source."
        )
    num_items = target.tables.num_items
    cut = make_slice("overall", target.splits, num_items, seed, 0)
    cut = cut._replace(learned_U=np.zeros_like(cut.learned_U))
    lists = drawn_lists(target.splits, num_items, seed) if drawn is None else drawn
    return CrossDomain(source, target, make_scenario("cross_domain", target.splits, cut, lists))
