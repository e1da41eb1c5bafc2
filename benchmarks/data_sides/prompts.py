"""Prompt to batch: the same samples by RecLoom's compiled templates, and by a tokenizer and a collator.

Shapes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening

from recloom.data_shards.bounded import Asked, HistoryOptions
from recloom.data_shards.compiled import CompiledTemplate
from recloom.data_shards.ragged import Ragged, end_to_end, from_column
from recloom.data_shards.rendered_batch import RenderedBatch, pack_batch
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Entity, Literal, Segment
from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.stream import IGNORE, PackedRow
from recloom.data_shards.tables import Tables
from recloom.data_shards.textualize import listwise, next_item
from recloom.data_shards.textualize.next_item import quoted
from recloom.data_shards.textualize.template import load_template, one_line_titles, read_blocks, template_path

CONSTANTS = {"noun": "movie", "verb": "watched"}
HISTORY, CANDIDATES = 10, 20
CAPACITY, WINDOW, BATCH = 2048, 1024, 8
FAMILIES = {"next_item": next_item.FAMILY, "listwise": listwise.FAMILY}
Collator = Callable[[list[dict[str, Any]]], Mapping[str, Any]]


@dataclass(frozen=True)
class Questions:
    """N questions as integers, `values` by placeholder; `lines`: how an item reads in them."""

    family: str
    values: dict[str, Ragged]
    lines: list[str]


def make_questions(family: str, tables: Tables, count: int) -> Questions:
    """The latest training items of the users, each behind up to ten before it; candidates are drawn."""
    train = leave_one_out(tables, None).topk.train
    asked = Asked.of(
        train.user_N, train.item_N, HistoryOptions(None, HISTORY, -(-count // tables.num_users) + 1)
    )
    rng = np.random.default_rng(0)
    index_N = rng.permutation(len(asked.item_M))[:count]
    candidates = [draw(rng, tables.num_items, int(asked.item_M[n])) for n in index_N]
    titles = one_line_titles(tables.titles)
    answer = from_column(asked.item_M[index_N])
    if family == "listwise":
        answer = end_to_end(np.concatenate(candidates), np.full(count, CANDIDATES))
    return Questions(
        family,
        {
            "history": asked.history.take(index_N),
            "candidates": end_to_end(
                np.concatenate([rng.permutation(row) for row in candidates]), np.full(count, CANDIDATES)
            ),
            "answer": answer,
        },
        [quoted(title) for title in titles] if family == "next_item" else titles,
    )


def draw(rng: np.random.Generator, num_items: int, answer: int) -> np.ndarray:
    others = rng.choice(num_items - 1, CANDIDATES - 1, replace=False)
    return np.concatenate([[answer], others + (others >= answer)])


def compile_questions(questions: Questions, renderer: Renderer) -> CompiledTemplate:
    template = load_template(questions.family, FAMILIES[questions.family])
    table = [segments(line, item) for item, line in enumerate(questions.lines)]
    return CompiledTemplate(renderer, template, CONSTANTS, dict.fromkeys(questions.values, table))


def segments(line: str, item: int) -> tuple[Segment, ...]:
    """A title with the quotes around it apart, where it has them."""
    if line[0] == line[-1] == '"':
        return Literal('"'), Entity(line[1:-1], "item", item), Literal('"')
    return (Entity(line, "item", item),)


def ours(compiled: CompiledTemplate, questions: Questions) -> list[PackedRow]:
    return list(pack_batch(compiled.render(questions.values), CAPACITY, WINDOW))


def plain_template(questions: Questions) -> str:
    """The template as one string for `str.format`, without the blocks that have no content."""
    shown = set(questions.values) | set(CONSTANTS)
    blocks = [text for text in read_blocks(template_path(questions.family)) if fields(text) <= shown]
    return "\n".join(blocks)


def fields(text: str) -> set[str]:
    return {part.partition("}")[0] for part in text.split("{")[1:]}


def features(tokenizer: Any, questions: Questions, template: str) -> list[dict[str, Any]]:
    """What a data set of Hugging Face would hold: strings formatted by Python, all tokenised in one call,
    which takes all cores; prompt tokens carry no loss."""
    prompts, texts = [], []
    rows = {name: as_lists(values) for name, values in questions.values.items()}
    for n in range(len(questions.values["answer"])):
        shown = {name: "\n".join([questions.lines[k] for k in rows[name][n]]) for name in rows}
        answer = shown["answer"]
        text = template.format(**CONSTANTS, **shown)
        prompts.append(len(text) - len(answer))
        texts.append(text)
    encoded = tokenizer(texts)
    found = []
    for n, ids in enumerate(encoded.input_ids):
        num_prompt = encoded.char_to_token(n, prompts[n])
        ids = [*ids, tokenizer.eos_token_id]
        labels = [IGNORE] * num_prompt + ids[num_prompt:]
        found.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return found


def as_lists(rows: Ragged) -> list[list[int]]:
    return [rows.row(n).tolist() for n in range(len(rows))]


def peers(tokenizer: Any) -> dict[str, Collator]:
    return {
        "tokenizer + DataCollatorForSeq2Seq": DataCollatorForSeq2Seq(tokenizer, padding=True),
        "tokenizer + DataCollatorWithFlattening": DataCollatorWithFlattening(return_tensors="pt"),
    }


def theirs(
    tokenizer: Any, collator: Collator, questions: Questions, template: str
) -> list[Mapping[str, Any]]:
    rows = features(tokenizer, questions, template)
    return [collator(rows[first : first + BATCH]) for first in range(0, len(rows), BATCH)]


def check(batch: RenderedBatch, rows: Sequence[dict[str, Any]]) -> None:
    """Both sides have the same ids and labels, sample by sample."""
    assert len(batch) == len(rows)
    for n, row in enumerate(rows):
        assert batch.ids(n).tolist() == row["input_ids"], f"sample {n}: other ids"
        assert int(batch.num_prompt_N[n]) == row["labels"].count(IGNORE), f"sample {n}: other labels"
