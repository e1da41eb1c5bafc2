"""Asking for item attributes by in-context learning (Llama4Rec, section 4.2.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    "attributes", required=frozenset({"examples", "candidate"}), optional=frozenset({"attributes"})
)
TITLE = "title"
UNKNOWN = frozenset({"", "unknown", "none", "n/a", "-"})


@dataclass(frozen=True)
class AttributesContext:
    """Ask for `names` of one item; examples: a title and every attribute, as in the answer."""

    item: int
    names: Sequence[str]
    examples: Sequence[Mapping[str, str]]


def attributes_sample(template: Template, context: AttributesContext, options: TextOptions) -> Sample:
    """The prompt; it has no answer, because nothing is trained on it. Meta: task, user (-1), items."""
    values = {
        "noun": (Literal(options.noun),),
        "attributes": (Literal(" and ".join(context.names)),),
        "examples": (Literal("\n".join(example_text(context.names, shown) for shown in context.examples)),),
        "candidate": item_lines([context.item], options.titles),
    }
    return make_sample(FAMILY.name, template, values, user=-1, items=[int(context.item)])


def example_text(names: Sequence[str], example: Mapping[str, str]) -> str:
    """An example in the form of the question and its answer."""
    lines = [f"Title: {one_line(example[TITLE])}", "Attributes:"]
    return "\n".join(lines + [f"{name}: {one_line(example[name])}" for name in names])


def parse_attributes(text: str, names: Sequence[str]) -> dict[str, str] | None:
    """The lines `name: value` before the next title; None where not one attribute is named.

    An attribute that is named twice counts the first time; one that is unknown is left out.
    """
    found: dict[str, str] = {}
    for line in map(one_line, text.split("\n")):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if name.lower() == TITLE:
            break
        known = next((own for own in names if own.lower() == name.lower()), None)
        if colon and known is not None and value.lower() not in UNKNOWN:
            found.setdefault(known, value)
    return found or None
