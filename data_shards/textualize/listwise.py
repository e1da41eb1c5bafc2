"""Listwise ranking prompts, after Figure 2 (top) of Llama4Rec (Luo et al. 2024); one title a line."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from recloom.data_shards.samples import Literal, Sample
from recloom.data_shards.textualize.template import (
    Family,
    Template,
    TextOptions,
    item_lines,
    make_sample,
    one_line,
)

FAMILY = Family(
    "listwise",
    required=frozenset({"history", "candidates"}),
    optional=frozenset({"liked", "disliked", "similar_history", "prediction"}),
)


@dataclass(frozen=True)
class ListwiseContext:
    """Item ids of one ranking question; histories run from oldest to newest.

    `liked` and `disliked` take the place of `history` in the prompt when one of them holds
    items. `candidates` stand in the order to show. `similar_history` and `prediction` are the
    prompt augmentations (sections 4.3.1 and 4.3.2), None switches one off. `answer` is ranked best first,
    None for inference.
    """

    user: int
    history: Sequence[int]
    candidates: Sequence[int]
    liked: Sequence[int] | None = None
    disliked: Sequence[int] | None = None
    similar_history: Sequence[int] | None = None
    prediction: Sequence[int] | None = None
    answer: Sequence[int] | None = None


@dataclass(frozen=True)
class ListwiseParse:
    """What a generated ranking says: `order` holds candidate ids in answered order without repeats,
    `invalid` counts the lines that are no candidate's title, `num_lines` all lines with text."""

    order: list[int]
    invalid: int
    num_lines: int


def listwise_sample(template: Template, context: ListwiseContext, options: TextOptions) -> Sample:
    """The prompt, and the answer where the context holds one. Meta: task, user, items (candidates as shown),
    answer (ids or None). Raises UserError when the template lacks a placeholder that the context fills."""
    assert set(context.answer or ()) <= set(context.candidates), "an answer ranks the candidates"
    is_split = bool(context.liked or context.disliked)
    lists = {
        "history": () if is_split else context.history,
        "liked": context.liked,
        "disliked": context.disliked,
        "candidates": context.candidates,
        "similar_history": context.similar_history,
        "prediction": context.prediction,
        "answer": context.answer,
    }
    values = {name: item_lines(items, options.titles) for name, items in lists.items()}
    return make_sample(
        FAMILY.name,
        template,
        {**values, "noun": (Literal(options.noun),)},
        user=int(context.user),
        items=[int(item) for item in context.candidates],
        answer=None if context.answer is None else [int(item) for item in context.answer],
    )


def parse_listwise(text: str, candidates: Sequence[int], titles: Sequence[str]) -> ListwiseParse:
    """Read a generated ranking: one title a line, exact but for white space.

    Candidates that share a title are taken in the order of `candidates`, one for each time it is named;
    a title named more often is a repeat and is passed over.
    """
    left: defaultdict[str, deque[int]] = defaultdict(deque)
    for item in candidates:
        left[one_line(titles[item])].append(int(item))
    lines = [line for line in map(one_line, text.split("\n")) if line]
    order = [left[line].popleft() for line in lines if left.get(line)]
    return ListwiseParse(order, sum(line not in left for line in lines), len(lines))
