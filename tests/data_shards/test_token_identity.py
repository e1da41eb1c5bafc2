"""Over every title of the real data sets, composed ids are what the tokenizer gives for the whole text."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recloom.data_shards.compiled import CompiledTemplate
from recloom.data_shards.ragged import end_to_end, from_column
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Entity, Literal, Segment
from recloom.data_shards.textualize.template import Family, build_template, one_line

TITLES_A_TEXT = 100
FAMILY = Family("identity", frozenset(), frozenset({"titles", "quoted", "title"}))


def column(path: Path, name: str) -> list[str]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return [row[name] or "" for row in csv.DictReader(file)]


def fields(path: Path, separator: str) -> list[str]:
    return [row.split(separator)[1] for row in path.read_text(encoding="latin-1").splitlines()]


def json_lines(path: Path, name: str) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line).get(name) or "" for line in file]


# Musical Instruments has reviews and no titles: their summaries stand in, as free text of the same length.
SETS = {
    "ml-100k": lambda data: fields(data / "ml-100k/u.item", "|"),
    "ml-1m": lambda data: fields(data / "ml-1m/movies.dat", "::"),
    "bookcrossing": lambda data: column(data / "bookcrossing-subset/BX-Books.csv", "Book-Title"),
    "scientific": lambda data: column(data / "amazon2018-scientific/items.csv", "title"),
    "beauty": lambda data: column(data / "amazon2014-beauty/items.csv", "title"),
    "gift cards": lambda data: json_lines(data / "amazon2018-gift-cards/meta_Gift_Cards.json.gz", "title"),
    "instruments": lambda data: json_lines(
        data / "amazon2014-musical-instruments/reviews_Musical_Instruments_5.json.gz", "summary"
    ),
}


@pytest.fixture(scope="module", params=["smollm2", "llama2"])
def tokenizer(request: pytest.FixtureRequest, smollm2: Path, shared_data: Path) -> Any:
    from transformers import AutoTokenizer

    folder = smollm2 if request.param == "smollm2" else shared_data / "llama2-tokenizer"
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", SETS)
def test_titles_compose_to_the_whole_text(shared_data: Path, tokenizer: Any, name: str) -> None:
    """In lists bare and quoted, inside of a line, and as an answer."""
    titles = list(filter(None, map(one_line, SETS[name](shared_data))))
    assert len(titles) > 1000
    check_lists(tokenizer, titles)
    check_lines_and_answers(tokenizer, titles)


def check_lists(tokenizer: Any, titles: list[str]) -> None:
    length_N = np.diff(np.asarray([*range(0, len(titles), TITLES_A_TEXT), len(titles)]))
    rows = end_to_end(np.arange(len(titles)), length_N)
    compiled = compile_blocks(tokenizer, ["{titles}", "Again:\n{quoted}", "Output:\n{answer}"], titles)
    got = compiled.render({"titles": rows, "quoted": rows})
    texts = []
    for first in range(0, len(titles), TITLES_A_TEXT):
        shown = titles[first : first + TITLES_A_TEXT]
        texts.append("\n".join([*shown, "Again:", *(f'"{title}"' for title in shown), "Output:\n"]))
    assert_ids(got, whole_ids(tokenizer, texts))


def check_lines_and_answers(tokenizer: Any, titles: list[str]) -> None:
    numbers = from_column(np.arange(len(titles)))
    compiled = compile_blocks(tokenizer, ["Which {title}, now?", "Output:\n{answer}"], titles)
    got = compiled.render({"title": numbers, "answer": numbers})
    ids = whole_ids(tokenizer, [f"Which {title}, now?\nOutput:\n{title}" for title in titles])
    assert_ids(got, [[*one, tokenizer.eos_token_id] for one in ids])


def compile_blocks(tokenizer: Any, blocks: list[str], titles: Sequence[str]) -> CompiledTemplate:
    template = build_template("identity", "identity", blocks, FAMILY)
    bare = [(Entity(title, "item", item),) for item, title in enumerate(titles)]
    tables: dict[str, Sequence[Sequence[Segment]]] = {
        "titles": bare,
        "title": bare,
        "answer": bare,
        "quoted": [(Literal('"'), *row, Literal('"')) for row in bare],
    }
    shown = {name: rows for name, rows in tables.items() if name in template.fields}
    return CompiledTemplate(Renderer(tokenizer), template, {}, shown)


def whole_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return list(tokenizer(texts, split_special_tokens=True).input_ids)


def assert_ids(got: Any, want: Iterable[list[int]]) -> None:
    for n, ids in enumerate(want):
        assert got.ids(n).tolist() == ids, n
