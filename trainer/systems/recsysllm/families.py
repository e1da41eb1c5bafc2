"""The five task families: which rows of the data feed them, and a row as a sample (RecSysLLM, data phase).

Shapes: N rows of interactions, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recloom.data_shards.candidates import Candidates
from recloom.data_shards.errors import UserError
from recloom.data_shards.samples import Sample
from recloom.data_shards.splits import Interactions, Split, Splits, merged
from recloom.data_shards.tables import Tables
from recloom.data_shards.textualize import (
    direct_task,
    explanation_task,
    rating_task,
    review_task,
    sequential_task,
)
from recloom.data_shards.textualize.behaviour import Periods, Person, TaskOptions, sample_behaviour
from recloom.data_shards.textualize.template import one_line
from recloom.data_shards.textualize.template_sets import NamedTemplate, TaskFamily
from recloom.trainer.item_texts import known_attributes
from recloom.trainer.systems.recsysllm.settings import CorpusBlock, FamilyName

USER_COLUMNS = ("user", "user_key")
RATED = ("rating", "explanation", "review")  # families that learn from the rows of the rating task


@dataclass(frozen=True)
class World:
    """The data as prompts see them.

    shown: the rows that histories are made of; none of validation or test in training. is_asked: for
    questions at test, whose histories also show validation rows.
    """

    tables: Tables
    splits: Splits
    shown: Splits
    options: TaskOptions
    corpus: CorpusBlock
    is_asked: bool = False

    def split(self, family: FamilyName) -> Split:
        return self.splits.rating if family in RATED else self.splits.topk

    def history_rows(self, family: FamilyName) -> Interactions:
        return (self.shown.rating if family in RATED else self.shown.topk).train

    @cached_property
    def times_N(self) -> np.ndarray:
        found: np.ndarray = self.tables.interactions["timestamp"].to_numpy()
        return found

    @cached_property
    def features(self) -> list[dict[str, str | None]]:
        """Attributes of every user, in the order of the ids."""
        names = [name for name in self.tables.users.column_names if name not in USER_COLUMNS]
        return [dict(row) for row in self.tables.users.select(names).to_pylist()] if names else []

    def text(self, column: str, row: int) -> str:
        """A review or a summary, on one line; empty where there is none."""
        if column not in self.tables.interactions.column_names:
            return ""
        return one_line(self.tables.interactions[column][row].as_py() or "")

    def person(self, family: FamilyName, user: int, order: int) -> Person:
        """A user as shown before a row: attributes, and what is sampled of the sequence."""
        rows = self.history_rows(family)
        start, end = np.searchsorted(rows.user_N, [user, user + 1])
        start, end = int(start), int(np.searchsorted(rows.order_N[start:end], order)) + int(start)
        periods = self.corpus.periods
        taken = sample_behaviour(
            self.times_N[rows.order_N[start:end]],
            end - start,
            self.corpus.history_items,
            self.corpus.seed,
            user,
            Periods(periods.by, periods.short_days, periods.medium_days, periods.shares),
        )
        ratings = rows.rating_N[start:end][taken]
        return Person(
            user,
            self.features[user] if self.features else {},
            rows.item_N[start:end][taken].tolist(),
            ratings.tolist() if self.tables.has_ratings else None,
        )


@dataclass(frozen=True)
class Case:
    """A row of the data to make a sample of. candidates: of a direct question, target included."""

    user: int
    item: int
    rating: float
    order: int
    candidates: list[int]


SampleMaker = Callable[[World, NamedTemplate, Case, np.random.Generator], Sample | None]


@dataclass(frozen=True)
class FamilyWork:
    """A family's templates, the form of answer that is asked at test, and its samples."""

    family: TaskFamily
    form: str
    make: SampleMaker


def rating_case(world: World, template: NamedTemplate, case: Case, rng: np.random.Generator) -> Sample | None:
    """In training with noise on the rating, as P5 does it."""
    rating = case.rating
    if world.corpus.jitter and not world.is_asked and template.form == "rating":
        rating = rating_task.jitter_rating(rating, rng, world.options)
    person = world.person("rating", case.user, case.order)
    return rating_task.rating_sample(
        template, rating_task.RatingContext(person, case.item, rating), world.options
    )


def sequential_case(
    world: World, template: NamedTemplate, case: Case, rng: np.random.Generator
) -> Sample | None:
    person = world.person("sequential", case.user, case.order)
    if not person.history:
        return None
    return sequential_task.sequential_sample(
        template, sequential_task.SequentialContext(person, case.item), world.options
    )


def explanation_case(
    world: World, template: NamedTemplate, case: Case, rng: np.random.Generator
) -> Sample | None:
    """None for a row without a review or summary; templates with hints leave out the hint that is missing."""
    details = world.options.details[case.item] if world.options.details else {}
    review, summary = world.text("review", case.order), world.text("summary", case.order)
    found = explanation_task.explanation_of(review, summary, details.values())
    if found is None:
        return None
    context = explanation_task.ExplanationContext(
        world.person("explanation", case.user, case.order),
        case.item,
        found.feature,
        None if np.isnan(case.rating) else case.rating,
        found.text,
    )
    return explanation_task.explanation_sample(template, context, world.options)


def review_case(world: World, template: NamedTemplate, case: Case, rng: np.random.Generator) -> Sample | None:
    """None for a row without a review, or without what is asked for."""
    review, summary = world.text("review", case.order), world.text("summary", case.order)
    if not review or (template.form == "summary" and not summary) or np.isnan(case.rating):
        return None
    context = review_task.ReviewContext(
        world.person("review", case.user, case.order), case.item, review, summary or None, case.rating
    )
    return review_task.review_sample(template, context, world.options)


def direct_case(world: World, template: NamedTemplate, case: Case, rng: np.random.Generator) -> Sample | None:
    """A yes/no question is about the target in half of the cases."""
    person = world.person("direct", case.user, case.order)
    shown = case.candidates
    if template.form == "yes_no":
        others = [item for item in shown if item != case.item]
        shown = [case.item if rng.random() < 0.5 or not others else others[0]]
    return direct_task.direct_sample(
        template, direct_task.DirectContext(person, shown, case.item), world.options
    )


WORK: Mapping[FamilyName, FamilyWork] = {
    "rating": FamilyWork(rating_task.FAMILY, "rating", rating_case),
    "sequential": FamilyWork(sequential_task.FAMILY, "title", sequential_case),
    "explanation": FamilyWork(explanation_task.FAMILY, "explanation", explanation_case),
    "review": FamilyWork(review_task.FAMILY, "summary", review_case),
    "direct": FamilyWork(direct_task.FAMILY, "title", direct_case),
}


def feedable(tables: Tables) -> list[FamilyName]:
    """The families that the data can feed."""
    columns = set(tables.interactions.column_names)
    needs: dict[FamilyName, set[str]] = {
        "rating": {"rating"},
        "sequential": set(),
        "explanation": {"summary"},
        "review": {"review", "summary", "rating"},
        "direct": set(),
    }
    return [family for family, wanted in needs.items() if wanted <= columns]


def item_attributes(tables: Tables, names: Sequence[str] | None) -> list[dict[str, str | None]]:
    """What is shown of every item beside its title; nothing where there are no attributes.

    names: None takes all but descriptions, which are longer than all else. Raises UserError for one that is
    no attribute.
    """
    known = known_attributes(tables)
    names = [name for name in known if name != "description"] if names is None else list(names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"corpus.details: {unknown[0]} named, no attribute of {tables.name}: "
            f"choose from {', '.join(known) or 'none'}."
        )
    return [dict(row) for row in tables.items.select(names).to_pylist()] if names else []


def asked_world(world: World) -> World:
    """The same at test, where histories also show validation rows."""

    def shown(split: Split) -> Split:
        return Split(merged(split.train, split.valid), split.valid, split.test)

    splits = world.splits
    known = Splits(shown(splits.topk), shown(splits.rating))
    return World(world.tables, splits, known, world.options, world.corpus, True)


def training_candidates(
    own_items: np.ndarray, target: int, num_items: int, count: int, rng: np.random.Generator
) -> list[int]:
    """The target among items that the user has no training row of, shuffled."""
    drawn = rng.choice(num_items, min(num_items, count + len(own_items) + 1), replace=False)
    free = drawn[~np.isin(drawn, np.append(own_items, target))][:count]
    mixed: list[int] = rng.permutation(np.append(free, target)).tolist()
    return mixed


def stored_list(candidates: Candidates, place: int) -> list[int]:
    """The candidates of one test row."""
    items_C = candidates.items_NC[place]
    return items_C[items_C >= 0].tolist()
