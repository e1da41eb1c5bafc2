"""The LLM's answers as orders of candidates and as ratings; what can't be read is counted and kept."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from recloom.data_shards.splits import Interactions
from recloom.data_shards.textualize.listwise import parse_listwise
from recloom.trainer.requests import Answer
from recloom.trainer.systems.llama4rec.questions import CandidateLists
from recloom.trainer.systems.llama4rec.rating_tokens import expected_rating

NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Ranked:
    """Full orders of each user's candidates: what the LLM named, then the rest in the backbone's order.

    num_bad counts answers with a line that is no candidate's title, or with no title at all.
    """

    orders: list[list[int]]
    candidates: list[list[int]]
    num_asked: int
    num_bad: int


def ranked_answers(answers: list[Answer], lists: CandidateLists, titles: list[str]) -> Ranked:
    """One order a user of `lists`; a user who was not asked keeps the backbone's order."""
    by_user = {answer.meta["user"]: answer for answer in answers}
    orders, candidates, bad = [], [], 0
    for user, items in lists.rows():
        answer = by_user.get(user)
        named: list[int] = []
        if answer is not None:
            parsed = parse_listwise(answer.text, items, titles)
            named = parsed.order
            bad += parsed.invalid > 0 or not named
        orders.append(named + [item for item in items if item not in set(named)])
        candidates.append(items)
    return Ranked(orders, candidates, len(answers), int(bad))


def pointwise_answers(answers: list[Answer], lists: CandidateLists, scale: tuple[float, float]) -> Ranked:
    """Candidates by the LLM's rating, equal ones in the backbone's order; unreadable ratings come last.

    One question is one user here, bad when a candidate's rating could not be read.
    """
    by_pair = by_question(answers)
    asked = {user for user, _ in by_pair}
    orders, candidates, bad = [], [], 0
    for user, items in lists.rows():
        ratings = [read_rating(by_pair[user, item], scale) for item in items] if user in asked else []
        bad += None in ratings
        keys = [-np.inf if rating is None else rating for rating in ratings] or [0.0] * len(items)
        orders.append([items[place] for place in np.argsort(-np.array(keys), kind="stable")])
        candidates.append(items)
    return Ranked(orders, candidates, len(asked), bad)


def by_question(answers: list[Answer]) -> dict[tuple[int, int], list[Answer]]:
    """The answers of each rating question, which may take two (`rating_tokens.py`), by (user, item)."""
    found: dict[tuple[int, int], list[Answer]] = {}
    for answer in answers:
        found.setdefault((answer.meta["user"], answer.meta["item"]), []).append(answer)
    return found


@dataclass(frozen=True)
class Rated:
    """One rating a row. num_bad counts unreadable answers, for which the backbone's rating stands in."""

    values_N: np.ndarray
    num_asked: int
    num_bad: int


def rated_answers(
    answers: list[Answer], rows: Interactions, fallback_N: np.ndarray, scale: tuple[float, float]
) -> Rated:
    """Ratings in the order of `rows`; scale: the lowest and the highest rating of the data set."""
    by_pair = by_question(answers)
    pairs = zip(rows.user_N.tolist(), rows.item_N.tolist(), strict=True)
    values = [read_rating(by_pair[pair], scale) for pair in pairs]
    filled = [
        fallback if value is None else value
        for value, fallback in zip(values, fallback_N.tolist(), strict=True)
    ]
    return Rated(np.array(filled, dtype=np.float64), len(values), values.count(None))


def read_rating(answers: list[Answer], scale: tuple[float, float]) -> float | None:
    """The expectation where labels were asked for, else the number that the answer's first line is.

    None when there is none, or it lies off the scale; a number inside a title is no rating.
    """
    if "labels" in answers[0].meta:
        return expected_rating(answers)
    first_line = answers[0].text.strip().split("\n")[0].strip()
    if answers[0].error or not NUMBER.fullmatch(first_line):
        return None
    value = float(first_line)
    return value if scale[0] <= value <= scale[1] else None
