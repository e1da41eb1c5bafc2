"""Why a user likes an item or not: a sentence (RecSysLLM, third task of P5's five).

P5 takes sentences about a feature from reviews with a sentiment lexicon. Here no lexicon is needed: the
explanation is the review's first sentence that names a word of the item's attributes, else the summary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recloom.data_shards.samples import Literal, Sample, Segment
from recloom.data_shards.textualize.behaviour import (
    PLACEHOLDERS,
    Person,
    TaskOptions,
    item_details,
    task_sample,
)
from recloom.data_shards.textualize.rating import rating_text
from recloom.data_shards.textualize.template import item_lines, one_line
from recloom.data_shards.textualize.template_sets import WORD, NamedTemplate, TaskFamily

HINTS = frozenset({"feature", "rating", "opinion"})
FAMILY = TaskFamily(
    "explanation",
    required=frozenset({"candidate"}),
    optional=PLACEHOLDERS | HINTS | {"details"},
    forms={"explanation": frozenset()},
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
MIN_LETTERS = 4  # of a feature word: "and", "for" and "the" stand in category names too


@dataclass(frozen=True)
class Explanation:
    """A sentence, and the word of the item's attributes that it names, as it is written there; None for a
    summary."""

    text: str
    feature: str | None


@dataclass(frozen=True)
class ExplanationContext:
    """The item; feature and rating are the hints, None leaves one out; answer: None for inference."""

    person: Person
    item: int
    feature: str | None = None
    rating: float | None = None
    answer: str | None = None


def has_hints(template: NamedTemplate) -> bool:
    """Whether a template shows a feature word or the user's verdict: results are told apart by it."""
    return bool(template.template.fields & HINTS)


def explanation_sample(template: NamedTemplate, context: ExplanationContext, options: TaskOptions) -> Sample:
    """Meta: task, template_id, form, user, items (the one), history, answer (the text)."""
    rating, items = context.rating, [context.item]
    values: dict[str, Sequence[Segment]] = {
        "candidate": item_lines(items, options.titles),
        "details": item_details(context.item, options),
        "feature": () if context.feature is None else (Literal(one_line(context.feature)),),
        "rating": () if rating is None else (Literal(rating_text(rating)),),
        "opinion": () if rating is None else (Literal(options.opinion(rating)),),
        "answer": () if context.answer is None else (Literal(one_line(context.answer)),),
    }
    return task_sample(FAMILY.name, template, context.person, options, values, items, context.answer)


def explanation_of(review: str, summary: str, attributes: Iterable[str | None]) -> Explanation | None:
    """The explanation in a review; None where it has neither such a sentence nor a summary.

    attributes: texts such as category and brand; their words of four letters and more count, singular and
    plural alike.
    """
    features = {stem(word) for text in attributes for word in WORD.findall(text or "") if is_feature(word)}
    for sentence in SENTENCE_END.split(one_line(review)):
        named = (word for word in WORD.findall(sentence) if is_feature(word) and stem(word) in features)
        if feature := next(named, None):
            return Explanation(sentence, feature)
    text = one_line(summary)
    return Explanation(text, None) if text else None


def is_feature(word: str) -> bool:
    return len(word) >= MIN_LETTERS


def stem(word: str) -> str:
    """Lower case without a final "s"."""
    return word.lower().removesuffix("s")
