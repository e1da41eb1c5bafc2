"""The texts of items for a sentence encoder: title and attributes on one line.

A-LLMRec (Kim et al. 2024, section 4.1) writes "Title: t, Description: d", its released code "t, d".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from recloom.data_shards.errors import UserError
from recloom.data_shards.tables import Tables
from recloom.data_shards.textualize.template import one_line

TextStyle = Literal["labelled", "plain"]

TITLE = "title"
NOT_ATTRIBUTES = ("item", "item_key", TITLE)
DEFAULT = "description"


def item_texts(tables: Tables, style: TextStyle, attributes: Sequence[str] | None = None) -> list[str]:
    """One text an item, in the order of the item ids: `labelled` "Title: t, Genres: a, b", `plain` "t, a, b".

    attributes: item columns behind the title, in this order; None means the description where there is such
    a column, else all attributes. What is null or blank is left out of its item's text. Raises UserError for
    a column that is no attribute.
    """
    names = chosen_attributes(tables, attributes)
    columns = [[one_line(title) for title in tables.titles]]
    columns += [[cell_text(cell) for cell in tables.items[name].to_pylist()] for name in names]
    labels = [f"{name[:1].upper()}{name[1:]}: " if style == "labelled" else "" for name in (TITLE, *names)]
    return [joined(labels, row) for row in zip(*columns, strict=True)]


def chosen_attributes(tables: Tables, attributes: Sequence[str] | None) -> list[str]:
    known = known_attributes(tables)
    if attributes is None:
        return [DEFAULT] if DEFAULT in known else known
    unknown = [name for name in attributes if name not in known]
    if unknown:
        choice = f"choose from {', '.join(known)}" if known else "the items have none, leave it empty"
        raise UserError(
            f"item_text.attributes = {list(attributes)}: '{unknown[0]}' is no attribute of the items of "
            f"{tables.name}: {choice}."
        )
    return list(attributes)


def known_attributes(tables: Tables) -> list[str]:
    """The item columns that say something of an item beside its title."""
    return [name for name in tables.items.column_names if name not in NOT_ATTRIBUTES]


def joined(labels: Sequence[str], texts: Sequence[str]) -> str:
    return ", ".join(label + text for label, text in zip(labels, texts, strict=True) if text)


def cell_text(cell: str | None) -> str:
    """An attribute on one line; several values, which the tables join by "|", become a list with commas."""
    values = [one_line(value) for value in (cell or "").split("|")]
    return ", ".join(value for value in values if value)
