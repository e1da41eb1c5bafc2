"""Rating prediction prompts, after Figure 2 (bottom) of Llama4Rec (Luo et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recloom.data_shards.samples import Entity, Literal, Sample, Segment
from recloom.data_shards.textualize.template import (
    Family,
    Template,
    TextOptions,
    item_lines,
    join_lines,
    make_sample,
)

FAMILY = Family(
    "rating",
    required=frozenset({"history", "candidate"}),
    optional=frozenset({"similar_history", "prediction"}),
)

Rated = tuple[int, float]


@dataclass(frozen=True)
class RatingContext:
    """One rating question. Histories are (item id, rating), oldest first. `similar_history` and `prediction`
    (a rating) are the prompt augmentations, None switches one off. `answer` is None for inference."""

    user: int
    history: Sequence[Rated]
    item: int
    similar_history: Sequence[Rated] | None = None
    prediction: float | None = None
    answer: float | None = None


def rating_text(rating: float) -> str:
    """A rating as people write it: 4, 3.5."""
    return f"{rating:g}"


def rating_sample(template: Template, context: RatingContext, options: TextOptions) -> Sample:
    """The prompt, and the answer where the context holds one. Meta: task, user, items (the one candidate),
    answer (the rating or None). Raises UserError when the template lacks a placeholder that is filled."""
    prediction, answer = context.prediction, context.answer
    values: dict[str, Sequence[Segment]] = {
        "noun": (Literal(options.noun),),
        "history": rated_lines(context.history, options.titles),
        "candidate": item_lines([context.item], options.titles),
        "similar_history": rated_lines(context.similar_history or (), options.titles),
        "prediction": () if prediction is None else (Literal(f"{prediction:.1f}"),),
        "answer": () if answer is None else (Literal(rating_text(answer)),),
    }
    meta_answer = None if answer is None else float(answer)
    user, item = int(context.user), int(context.item)
    return make_sample(FAMILY.name, template, values, user=user, items=[item], answer=meta_answer)


def rated_lines(rated: Iterable[Rated], titles: Sequence[str]) -> tuple[Segment, ...]:
    """Lines such as `Toy Story (1995): 4`."""
    return join_lines(
        (Entity(titles[item], "item", int(item)), Literal(f": {rating_text(rating)}"))
        for item, rating in rated
    )
