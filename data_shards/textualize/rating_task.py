"""What a user would rate an item: a number, or like against dislike (RecSysLLM, first task of P5's five)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recloom.data_shards.samples import Literal, Sample, Segment
from recloom.data_shards.textualize.behaviour import (
    PLACEHOLDERS,
    Person,
    TaskOptions,
    item_details,
    task_sample,
)
from recloom.data_shards.textualize.rating import rating_text
from recloom.data_shards.textualize.template import item_lines
from recloom.data_shards.textualize.template_sets import (
    NamedTemplate,
    TaskFamily,
    parse_word,
)

FAMILY = TaskFamily(
    "rating",
    required=frozenset({"candidate"}),
    optional=PLACEHOLDERS | {"details"},
    forms={"rating": frozenset(), "choice": frozenset()},
)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class RatingContext:
    """The item to rate, and the rating; None for inference."""

    person: Person
    item: int
    answer: float | None = None


def rating_sample(template: NamedTemplate, context: RatingContext, options: TaskOptions) -> Sample:
    """Meta: task, template_id, form, user, items (the one asked for), history, answer (the rating)."""
    rating, items = context.answer, [context.item]
    values = {
        "candidate": item_lines(items, options.titles),
        "details": item_details(context.item, options),
        "answer": () if rating is None else rating_answer(template, rating, options),
    }
    answer = None if rating is None else float(rating)
    return task_sample(FAMILY.name, template, context.person, options, values, items, answer)


def rating_answer(template: NamedTemplate, rating: float, options: TaskOptions) -> Sequence[Segment]:
    return (Literal(options.opinion(rating) if template.form == "choice" else rating_text(rating)),)


def jitter_rating(rating: float, generator: np.random.Generator, options: TaskOptions) -> float:
    """A rating to train on, moved by Gaussian noise as in P5: about the middle of what rounds to it, a
    quarter of that range as standard deviation, one decimal, inside the scale."""
    low, high = max(rating - 0.5, options.lowest), min(rating + 0.4, options.highest)
    drawn = round(float(generator.normal((low + high) / 2, (high - low) / 4)), 1)
    return min(max(drawn, options.lowest), options.highest)


def parse_rating(text: str, options: TaskOptions) -> float | None:
    """The first number of an answer; None where there is none or it lies outside of the scale."""
    match = NUMBER.search(text)
    rating = float(match.group()) if match else None
    return rating if rating is not None and options.lowest <= rating <= options.highest else None


def parse_choice(text: str) -> str | None:
    """ "like" or "dislike"; None for an answer that begins with another word."""
    return parse_word(text, ("like", "dislike"))
