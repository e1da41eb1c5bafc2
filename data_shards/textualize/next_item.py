"""The next item out of a set, after Figures 3 and 5 of A-LLMRec (Kim et al. 2024); one quoted title a line.

With soft tokens the user's vector comes first and an item's vector stands beside its title.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal as Choice
from typing import TypeAlias

from recloom.data_shards.samples import Entity, Literal, Sample, Segment, Slot, SlotKind
from recloom.data_shards.textualize.template import Family, Template, TextOptions, join_lines, make_sample

Place: TypeAlias = Choice["behind", "before"]

FAMILY = Family(
    "next_item", required=frozenset({"history", "candidates"}), optional=frozenset({"user", "verb"})
)
GENRES = Family("genres", required=frozenset({"history"}), optional=frozenset({"user", "verb"}))


@dataclass(frozen=True)
class NextItemContext:
    """Item ids of one question; the history runs from oldest to newest, candidates stand as shown.

    user_row: the row of the user vectors that the user's soft token is made of, None for no such token.
    soft_items: where each title's soft token stands, None for no such tokens. answer: None for inference.
    """

    user: int
    history: Sequence[int]
    candidates: Sequence[int] = ()
    user_row: int | None = None
    soft_items: Place | None = None
    answer: int | None = None


def quoted(title: str) -> str:
    """How a title stands in prompts, and what the answer is."""
    return f'"{title}"'


def cut_titles(titles: Sequence[str], words: int | None) -> list[str]:
    """Titles of at most so many words; None leaves them whole."""
    return list(titles) if words is None else [" ".join(title.split()[:words]) for title in titles]


def next_item_sample(template: Template, context: NextItemContext, options: TextOptions, verb: str) -> Sample:
    """The question, and the quoted title where there is an answer. Meta: task, user, items, answer."""
    assert context.answer is None or context.answer in context.candidates, "the answer is a candidate"
    values = {
        **shared_values(context, options, verb),
        "candidates": titles_lines(context.candidates, context, options, "candidate"),
        "answer": () if context.answer is None else quoted_title(context.answer, options),
    }
    return make_sample(
        FAMILY.name,
        template,
        values,
        user=int(context.user),
        items=[int(item) for item in context.candidates],
        answer=None if context.answer is None else int(context.answer),
    )


def genres_sample(template: Template, context: NextItemContext, options: TextOptions, verb: str) -> Sample:
    """The favourite genres of a user, in free text; only for inference."""
    return make_sample(GENRES.name, template, shared_values(context, options, verb), user=int(context.user))


def shared_values(context: NextItemContext, options: TextOptions, verb: str) -> dict[str, Sequence[Segment]]:
    return {
        "user": () if context.user_row is None else (Slot("user", int(context.user_row)),),
        "history": titles_lines(context.history, context, options, "history"),
        "noun": (Literal(options.noun),),
        "verb": (Literal(verb),),
    }


def quoted_title(item: int, options: TextOptions) -> tuple[Segment, ...]:
    return Literal('"'), Entity(options.titles[item], "item", int(item)), Literal('"')


def titles_lines(
    items: Sequence[int], context: NextItemContext, options: TextOptions, kind: SlotKind
) -> tuple[Segment, ...]:
    """One quoted title a line, with the item's soft token beside it where the context has them."""
    return join_lines(
        (
            *([Slot(kind, int(item))] if context.soft_items == "before" else []),
            *quoted_title(item, options),
            *([Slot(kind, int(item))] if context.soft_items == "behind" else []),
        )
        for item in items
    )
