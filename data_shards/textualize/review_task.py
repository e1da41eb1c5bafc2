"""What a review says in short, or what rating goes with it (RecSysLLM, fourth task of P5's five)."""

from __future__ import annotations

from collections.abc import Sequence
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
from recloom.data_shards.textualize.template_sets import NamedTemplate, TaskFamily

FAMILY = TaskFamily(
    "review",
    required=frozenset({"review"}),
    optional=PLACEHOLDERS | {"candidate", "details"},
    forms={"summary": frozenset(), "rating": frozenset()},
)


@dataclass(frozen=True)
class ReviewContext:
    """A review's text; its summary or rating is the answer, as the template asks, None for inference.

    Reviews without text and blank summaries are to be left out.
    """

    person: Person
    item: int
    review: str
    summary: str | None = None
    rating: float | None = None


def review_sample(template: NamedTemplate, context: ReviewContext, options: TaskOptions) -> Sample:
    """Meta: task, template_id, form, user, items (the reviewed one), history, answer (summary or rating).

    The prompt never shows the summary or the rating of this review.
    """
    words, items = context.review.split()[: options.review_words], [context.item]
    rating = None if context.rating is None else float(context.rating)
    answer = context.summary if template.form == "summary" else rating
    assert words and answer != "", "a review and its summary have text"
    values: dict[str, Sequence[Segment]] = {
        "candidate": item_lines(items, options.titles),
        "details": item_details(context.item, options),
        "review": (Literal(" ".join(words)),) if words else (),
        "answer": () if answer is None else answer_text(answer),
    }
    return task_sample(FAMILY.name, template, context.person, options, values, items, answer)


def answer_text(answer: str | float) -> Sequence[Segment]:
    return (Literal(one_line(answer) if isinstance(answer, str) else rating_text(answer)),)
