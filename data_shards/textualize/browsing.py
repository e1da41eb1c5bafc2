"""What a user has browsed, one numbered item a line, after section 3.1.1 of Laser (Zhang et al. 2024).

A single item is a history of one: the same template writes both. No answer follows; the language model's
state behind the text is what is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recloom.data_shards.samples import Entity, Literal, Sample, Segment
from recloom.data_shards.textualize.template import Family, Template, TextOptions, join_lines, make_sample

FAMILY = Family("browsing", required=frozenset({"items"}), optional=frozenset(), answered=False)


def browsing_sample(
    template: Template,
    user: int | str,
    items: Sequence[int],
    options: TextOptions,
    details: Sequence[str],
    target: int | None = None,
    history: Sequence[int] | None = None,
) -> Sample:
    """The text of a history, oldest first. Meta: task, user, items, target, history.

    user: who, or what is written in the place of one ("item"). details: by item id, what stands in brackets
    behind the title, "" for nothing (`item_details`). target: the item that comes next, where it is known.
    history: all that is known of the user, where the text shows the latest `items` only.
    """
    lines = join_lines(item_line(place, item, options, details) for place, item in enumerate(items, 1))
    return make_sample(
        FAMILY.name,
        template,
        {"items": lines, "noun": (Literal(options.noun),)},
        user=user,
        items=[int(item) for item in items],
        target=None if target is None else int(target),
        history=[int(item) for item in (items if history is None else history)],
    )


def item_line(place: int, item: int, options: TextOptions, details: Sequence[str]) -> tuple[Segment, ...]:
    """`2. Title (brand: b, category: c)`."""
    behind = f" ({details[item]})" if details[item] else ""
    return Literal(f"{place}. "), Entity(options.titles[item], "item", int(item)), Literal(behind)


def item_details(columns: Mapping[str, Sequence[str | None]], words: int | None = None) -> list[str]:
    """`brand: b, category: c` of every item; what is blank is left out.

    columns: one text an item, by name, in the order shown. words: longest value, None for whole ones.
    """
    return [
        ", ".join(
            f"{name}: {text}"
            for name, value in zip(columns, row, strict=True)
            if (text := " ".join((value or "").split()[:words]))
        )
        for row in zip(*columns.values(), strict=True)
    ]
