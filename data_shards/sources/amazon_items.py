"""Titles and attributes of the items in the metadata files of both Amazon dumps."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pyarrow as pa

from recloom.data_shards.sources.dump_lines import read_lines, whole_text

ATTRIBUTES = ("description", "brand", "category", "price")
TAGS = "a|b|br|div|em|font|h[1-6]|hr|i|img|li|ol|p|script|small|span|strong|style|table|tbody|td|th|tr|u|ul"
TAG = re.compile(rf"</?(?:{TAGS})\b[^<>]*>", re.IGNORECASE)
SCRIPT = "getTime"  # some titles of 2018 are the page's JavaScript; the authors tell them by this word
PRICE = re.compile(r"\$(?P<least>\d[\d,]*(?:\.\d+)?)(?: - \$[\d,.]+)?")
LARGEST_PRICE = 1e9
KEY = re.compile(rb"""["']asin["']\s*:\s*["']([^"'\\]+)["']""")


def read_items(path: Path, literals: bool, keys: set[str]) -> dict[str, dict[str, str]]:
    """Title and attributes of the items `keys`. A later line of an item stands if it has a title."""
    items: dict[str, dict[str, str]] = {}
    known = {key.encode() for key in keys}
    for line in read_lines(path):
        if is_of_others(line.data, known):
            continue
        record = line.parse(literals)
        key = record.key("asin")
        if key in keys:
            texts = item_texts(record.values)
            if texts["title"] or key not in items:
                items[key] = texts
    return items


def is_of_others(data: bytes, known: set[bytes]) -> bool:
    """True where a glance tells: most lines are of items without a kept review, and literals parse slowly."""
    found = KEY.findall(data)
    return bool(found) and known.isdisjoint(found) and data.rstrip().endswith(b"}")


def item_table(keys: list[str], items: dict[str, dict[str, str]]) -> pa.Table:
    """item_key, title (the key where there is none) and the attributes, which need a metadata file."""
    found = [items.get(key, {}) for key in keys]
    table = {
        "item_key": keys,
        "title": [item.get("title") or key for key, item in zip(keys, found, strict=True)],
    }
    if items:
        table |= {name: [item.get(name, "") for item in found] for name in ATTRIBUTES}
    return pa.table({name: pa.array(values, pa.string()) for name, values in table.items()})


def item_texts(values: dict[str, Any]) -> dict[str, str]:
    """title, first description, brand, last category path, price; "" for what is not there."""
    title = clean_text(text_of(values.get("title")))
    return {
        "title": "" if SCRIPT in title else title,
        "description": clean_text(first_text(values.get("description"))),
        "brand": clean_text(text_of(values.get("brand"))),
        "category": category_path(values.get("category") or values.get("categories")),
        "price": price_of(values.get("price")),
    }


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else ""


def first_text(value: Any) -> str:
    """The text, or the first of a list of texts (2018)."""
    return text_of(value[0] if isinstance(value, list) and value else value)


def category_path(value: Any) -> str:
    """The one path of 2018 or the last path of 2014, its parts joined by "|"."""
    path = value[-1] if isinstance(value, list) and value and isinstance(value[-1], list) else value
    parts = [clean_text(text_of(part)) for part in path] if isinstance(path, list) else []
    return "|".join(part.replace("|", "/") for part in parts if part)


def price_of(value: Any) -> str:
    """Dollars as a plain number, the least of a range; "" for the markup that some lines of 2018 have."""
    match = PRICE.fullmatch(text_of(value).strip())
    if match:
        return match["least"].replace(",", "")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < LARGEST_PRICE
    return f"{value:.2f}" if is_number else ""


def clean_text(text: str) -> str:
    """One line without HTML tags and entities."""
    return " ".join(html.unescape(TAG.sub(" ", whole_text(text))).split())
