"""The LLM's answers as orders of candidates and as ratings; what can't be read is counted and kept."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from recloom.data_shards.splits import Interactions
from recloom.data_shards.textualize.listwise import parse_listwise
from recloom.trainer.requests import Answer
from recloom.trainer.systems.llama4rec.questions import CandidateLists

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
    for user, items_k in zip(lists.users_B.tolist(), lists.items_Bk.tolist(), strict=True):
        items = [item for item in items_k if item >= 0]
        answer = by_user.get(user)
        named: list[int] = []
        if answer is not None:
            parsed = parse_listwise(answer.text, items, titles)
            named = parsed.order
            bad += parsed.invalid > 0 or not named
        orders.append(named + [item for item in items if item not in set(named)])
        candidates.append(items)
    return Ranked(orders, candidates, len(answers), int(bad))


@dataclass(frozen=True)
class Rated:
    """One rating a row. num_bad counts unreadable answers, for which the backbone's rating stands in."""

    values_N: np.ndarray
    num_asked: int
    num_bad: int


def rated_answers(
    answers: list[Answer],
    rows: Interactions,
    labels: list[float],
    fallback_N: np.ndarray,
    scale: tuple[float, float],
) -> Rated:
    """Ratings in the order of `rows`.

    With labels: the expectation under the probabilities of the labels' tokens, renormalised over
    them. Without: the number that the answer's first line is, if it lies on the scale (lowest,
    highest rating); a number inside a title is no rating.
    """
    by_user = {answer.meta["user"]: answer for answer in answers}
    values, bad = [], 0
    for user, fallback in zip(rows.user_N.tolist(), fallback_N.tolist(), strict=True):
        value = read_rating(by_user[user], labels, scale)
        bad += value is None
        values.append(fallback if value is None else value)
    return Rated(np.array(values, dtype=np.float64), len(answers), bad)


def read_rating(answer: Answer, labels: list[float], scale: tuple[float, float]) -> float | None:
    if answer.error is not None:
        return None
    if labels:
        scores = np.array(answer.scores)
        weight = np.exp(scores - scores.max())
        return float((weight * labels).sum() / weight.sum())
    first_line = answer.text.strip().split("\n")[0].strip()
    if not NUMBER.fullmatch(first_line) or not scale[0] <= float(first_line) <= scale[1]:
        return None
    return float(first_line)
