"""User features and behaviour as text, and what is shown of a long sequence (RecSysLLM, data phase).

Feature values and titles are entities. A long sequence is sampled from three periods, 10 % long-term, 30 %
medium-term and 60 % short-term; the paper gives no thresholds (it speaks of months or years, weeks or months,
days or hours), so they are settings.

Shapes: T interactions of one user, oldest first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal as Choice

import numpy as np

from recloom.data_shards.errors import UserError
from recloom.data_shards.samples import Entity, Literal, Sample, Segment
from recloom.data_shards.textualize.rating import rating_text
from recloom.data_shards.textualize.template import TextOptions, item_lines, join_lines, one_line
from recloom.data_shards.textualize.template_sets import NamedTemplate, named_sample

DAY = 86_400  # seconds
LONG, MEDIUM, SHORT = range(3)
VALUES = "|"  # joins the values of an attribute in the tables
# With spaces around it, a separator leaves the tokens of what stands beside it whole.
BETWEEN_VALUES, BETWEEN_TITLES = " / ", " | "
LISTS = frozenset({"history", "history_text", "rated_history"})
PLACEHOLDERS = LISTS | {"features", "liked", "disliked", "verb", "scale"}


@dataclass(frozen=True)
class Periods:
    """How a long sequence is cut down.

    by: "time" counts days back from the latest interaction shown, "position" takes thirds of the sequence,
    for data whose timestamps are positions. shares: of the budget, for long, medium and short term.
    latest: of the short term the latest are taken, which tell most of the next; False draws there too.
    """

    by: Choice["time", "position"] = "time"
    short_days: float = 7.0
    medium_days: float = 90.0
    shares: tuple[float, float, float] = (0.1, 0.3, 0.6)
    latest: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.short_days <= self.medium_days:
            raise UserError(
                f"periods: short_days = {self.short_days:g}, medium_days = {self.medium_days:g}: they must "
                "not be negative, and medium_days not the smaller: change one of them."
            )
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise UserError(f"periods: shares are {self.shares}: they must sum to 1, none negative.")


@dataclass(frozen=True)
class TaskOptions(TextOptions):
    """What the prompts of RecSysLLM share.

    verb: what a user has done with items ("bought"). lowest, highest: the scale of ratings. Ratings of
    positive_rating and above count as liked. details: attributes by item id, none where it is empty.
    review_words: longest review shown, None for whole ones.
    """

    verb: str = "bought"
    lowest: float = 1.0
    highest: float = 5.0
    positive_rating: float = 4.0
    details: Sequence[Mapping[str, str | None]] = ()
    review_words: int | None = 300

    def opinion(self, rating: float) -> str:
        return "like" if rating >= self.positive_rating else "dislike"


@dataclass(frozen=True)
class Person:
    """What is known of a user: attributes by name, item ids from oldest to newest, and their ratings where
    there are any."""

    user: int
    features: Mapping[str, str | None] = field(default_factory=dict)
    history: Sequence[int] = ()
    ratings: Sequence[float] | None = None


def attribute_text(values: Mapping[str, str | None]) -> tuple[Segment, ...]:
    """`age: 24, genres: Action / Drama`: every value an entity; what is blank is left out."""
    segments: list[Segment] = []
    for name, value in values.items():
        parts = [text for part in (value or "").split(VALUES) if (text := one_line(part))]
        for place, part in enumerate(parts):
            behind = f"{', ' if segments else ''}{one_line(name)}: "
            segments += [Literal(BETWEEN_VALUES if place else behind), Entity(part, "attribute", None)]
    return tuple(segments)


def title_text(items: Sequence[int], titles: Sequence[str]) -> tuple[Segment, ...]:
    """Titles as running text on one line."""
    segments: list[Segment] = []
    for item in items:
        segments += [Literal(BETWEEN_TITLES), Entity(titles[item], "item", int(item))]
    return tuple(segments[1:])


def scored_lines(person: Person, titles: Sequence[str]) -> tuple[Segment, ...]:
    """Lines such as `Toy Story (1995) (rated 4)`, titles alone where there are no ratings.

    No colon follows a title: its last bracket or full stop would share a token with it.
    """
    if person.ratings is None:
        return item_lines(person.history, titles)
    return join_lines(
        (Entity(titles[item], "item", int(item)), Literal(f" (rated {rating_text(rating)})"))
        for item, rating in zip(person.history, person.ratings, strict=True)
    )


def person_values(person: Person, options: TaskOptions) -> dict[str, Sequence[Segment]]:
    """The placeholders that all tasks share; empty ones for what is not known.

    Without ratings {rated_history} shows titles alone, so that no template hides what a user did.
    """
    rated = list(zip(person.history, person.ratings, strict=True)) if person.ratings is not None else []
    liked = [item for item, rating in rated if options.opinion(rating) == "like"]
    disliked = [item for item, rating in rated if options.opinion(rating) == "dislike"]
    return {
        "noun": (Literal(options.noun),),
        "verb": (Literal(options.verb),),
        "scale": (Literal(f"{rating_text(options.lowest)} to {rating_text(options.highest)}"),),
        "features": attribute_text(person.features),
        "history": item_lines(person.history, options.titles),
        "history_text": title_text(person.history, options.titles),
        "rated_history": scored_lines(person, options.titles),
        "liked": item_lines(liked, options.titles),
        "disliked": item_lines(disliked, options.titles),
    }


def item_details(item: int, options: TaskOptions) -> tuple[Segment, ...]:
    """The attributes of an item, as the features of a user are written."""
    return attribute_text(options.details[item]) if options.details else ()


def task_sample(
    task: str,
    template: NamedTemplate,
    person: Person,
    options: TaskOptions,
    values: Mapping[str, Sequence[Segment]],
    items: Sequence[int],
    answer: str | float | None,
) -> Sample:
    """A sample of any task. Meta: task, template_id, form, user, items, history (as shown), answer."""
    return named_sample(
        task,
        template,
        {**person_values(person, options), **values},
        user=int(person.user),
        items=[int(item) for item in items],
        history=[int(item) for item in person.history],
        answer=answer,
    )


def sample_behaviour(
    times_T: np.ndarray, target: int, budget: int, seed: int, user: int, periods: Periods
) -> np.ndarray:
    """Which rows of a user's sequence are shown before the one at `target`: ascending, at most `budget`.

    times_T: seconds, ascending. Rows at and after the target are never taken, not even of the same second.
    The draw depends on the seed, the user and the sequence alone.
    """
    assert 0 <= target <= len(times_T), f"target {target} lies outside of {len(times_T)} interactions"
    if target <= budget:
        return np.arange(target)
    generator = np.random.default_rng([seed, user])
    period_T = period_of(times_T[:target], periods)
    rows = [np.flatnonzero(period_T == period) for period in (LONG, MEDIUM, SHORT)]
    counts = take_counts([len(index_K) for index_K in rows], budget, periods.shares)
    taken = [
        generator.choice(index_K, count, replace=False) for index_K, count in zip(rows, counts, strict=True)
    ]
    if periods.latest:
        taken[SHORT] = rows[SHORT][len(rows[SHORT]) - counts[SHORT] :]
    return np.sort(np.concatenate(taken))


def period_of(times_T: np.ndarray, periods: Periods) -> np.ndarray:
    """LONG, MEDIUM or SHORT of every row (T,). A row on a threshold belongs to the shorter term."""
    num_rows = len(times_T)
    if periods.by == "position":
        return SHORT - np.arange(num_rows)[::-1] * 3 // num_rows
    days_T = (times_T[-1] - times_T) / DAY
    return LONG + (days_T <= periods.medium_days).astype(np.int64) + (days_T <= periods.short_days)


def take_counts(sizes: Sequence[int], budget: int, shares: Sequence[float]) -> list[int]:
    """How many of each period: its share of the budget, and what others leave, the shorter term first."""
    bounds = np.floor(np.cumsum([0.0, *shares]) * budget + 1e-6).astype(int)
    counts = [min(size, int(quota)) for size, quota in zip(sizes, np.diff(bounds), strict=True)]
    for period in (SHORT, MEDIUM, LONG):
        counts[period] += min(sizes[period] - counts[period], budget - sum(counts))
    return counts
