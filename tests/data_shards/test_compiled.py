"""Compiled templates give exactly what the renderer gives, sample by sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.data_shards.compiled import CompiledTemplate
from recloom.data_shards.errors import UserError
from recloom.data_shards.ragged import Ragged, from_column, from_rows
from recloom.data_shards.rendered_batch import RenderedBatch, build_rows, pack_batch
from recloom.data_shards.renderer import Rendered, Renderer
from recloom.data_shards.samples import Entity, Literal, Segment, Slot
from recloom.data_shards.stream import PackedStream, build_row
from recloom.data_shards.textualize import browsing, listwise, next_item, rating
from recloom.data_shards.textualize.browsing import browsing_sample, item_line
from recloom.data_shards.textualize.listwise import ListwiseContext, listwise_sample
from recloom.data_shards.textualize.next_item import NextItemContext, next_item_sample, quoted_title
from recloom.data_shards.textualize.rating import RatingContext, rating_sample, rating_text
from recloom.data_shards.textualize.template import (
    Family,
    TextOptions,
    build_template,
    load_template,
    make_sample,
    one_line,
)

SETTINGS = settings(max_examples=80, deadline=None, derandomize=True)
ODD = ["/", "(", "'", "...", "</s>", "<|im_end|>", "\u0301", "\u200b", "🎬", "-", "Ċa", "▁"]
TITLES = st.builds(
    lambda start, text, end: one_line(start + text + end),
    st.sampled_from(["", "", *ODD]),
    st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("ab Z19(),'é東\n\t")), max_size=20),
    st.sampled_from(["", *ODD]),
).filter(bool)
CATALOGUES = st.lists(TITLES, min_size=2, max_size=8)
SEEDS = st.integers(0, 10**6)


@pytest.fixture(scope="module", params=["smol", "llama2", "smol with a start token"])
def renderer(request: pytest.FixtureRequest, smollm2: Path) -> Renderer:
    from transformers import AutoTokenizer

    if request.param == "llama2":
        shared_data = request.getfixturevalue("shared_data")
        return Renderer(AutoTokenizer.from_pretrained(shared_data / "llama2-tokenizer"))
    return Renderer(AutoTokenizer.from_pretrained(smollm2), start=request.param != "smol")


def assert_same(got: RenderedBatch, want: list[Rendered]) -> None:
    """Ids, masks, spans and slots of every sample, bit by bit."""
    assert len(got) == len(want)
    for n, one in enumerate(want):
        found = got.rendered(n)
        assert found.ids_T.dtype == one.ids_T.dtype and found.ids_T.tolist() == one.ids_T.tolist()
        assert found.num_prompt == one.num_prompt
        assert found.entity_spans == one.entity_spans
        assert found.slots == one.slots


def draw_rows(rng: np.random.Generator, count: int, num_items: int, least: int) -> list[list[int]]:
    return [rng.integers(0, num_items, rng.integers(least, 5)).tolist() for _ in range(count)]


def soften(titles: list[tuple[Segment, ...]], soft: str | None, kind: Any) -> list[tuple[Segment, ...]]:
    """A title's rows with the item's slot beside it."""
    rows = []
    for item, title in enumerate(titles):
        before, behind = ([Slot(kind, item)] if soft == place else [] for place in ("before", "behind"))
        rows.append((*before, *title, *behind))
    return rows


@SETTINGS
@given(titles=CATALOGUES, soft=st.sampled_from([None, "before", "behind"]), seed=SEEDS)
def test_next_item(renderer: Renderer, titles: list[str], soft: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    template, options = load_template("next_item", next_item.FAMILY), TextOptions(titles, "movie")
    histories, candidates = (draw_rows(rng, 6, len(titles), 1) for _ in range(2))
    answers = [shown[-1] for shown in candidates]
    users = [int(user) if soft else None for user in rng.integers(0, 9, 6)]
    quoted = [quoted_title(item, options) for item in range(len(titles))]
    tables = {
        "history": soften(quoted, soft, "history"),
        "candidates": soften(quoted, soft, "candidate"),
        "answer": quoted,
        "user": [(Slot("user", user),) for user in range(9)],
    }
    compiled = CompiledTemplate(renderer, template, {"noun": "movie", "verb": "watched"}, tables)
    values = {
        "history": from_rows(histories),
        "candidates": from_rows(candidates),
        "answer": from_rows([[answer] for answer in answers]),
        "user": from_rows([[] if user is None else [user] for user in users]),
    }
    samples = [
        next_item_sample(template, NextItemContext(3, h, c, u, soft, a), options, "watched")
        for h, c, u, a in zip(histories, candidates, users, answers, strict=True)
    ]
    assert_same(compiled.render(values), [renderer.render(sample) for sample in samples])
    asked = compiled.render({name: rows for name, rows in values.items() if name != "answer"})
    assert_same(asked, [renderer.render_text(sample) for sample in samples])


@SETTINGS
@given(titles=CATALOGUES, seed=SEEDS)
def test_listwise_leaves_out_what_a_sample_lacks(renderer: Renderer, titles: list[str], seed: int) -> None:
    """Optional blocks come and go from sample to sample; answers have several lines."""
    rng = np.random.default_rng(seed)
    template, options = load_template("listwise", listwise.FAMILY), TextOptions(titles, "movie")
    names = ["candidates", "liked", "disliked", "similar_history", "prediction"]
    lists = {name: draw_rows(rng, 8, len(titles), int(name == "candidates")) for name in names}
    histories = draw_rows(rng, 8, len(titles), 1)
    split = [bool(a or b) for a, b in zip(lists["liked"], lists["disliked"], strict=True)]
    shown = [[] if is_split else history for is_split, history in zip(split, histories, strict=True)]
    values = {**lists, "history": shown, "answer": [sorted(row) for row in lists["candidates"]]}
    table = [(Entity(title, "item", item),) for item, title in enumerate(titles)]
    compiled = CompiledTemplate(renderer, template, {"noun": "movie"}, dict.fromkeys(values, table))
    samples = [
        listwise_sample(
            template,
            ListwiseContext(
                user=n,
                history=histories[n],
                answer=values["answer"][n],
                **{name: rows[n] for name, rows in lists.items()},
            ),
            options,
        )
        for n in range(8)
    ]
    got = compiled.render({name: from_rows(rows) for name, rows in values.items()})
    assert_same(got, [renderer.render(sample) for sample in samples])


@SETTINGS
@given(titles=CATALOGUES, seed=SEEDS)
def test_ratings_and_values_inside_of_a_line(renderer: Renderer, titles: list[str], seed: int) -> None:
    """`Candidate Item: TITLE` is tokenised as a line with the item in it."""
    rng = np.random.default_rng(seed)
    template, options = load_template("rating", rating.FAMILY), TextOptions(titles, "movie")
    pairs = [(item, score) for item in range(len(titles)) for score in (1.0, 3.5)]
    tables: dict[str, list[Any]] = {
        "history": [
            (Entity(titles[item], "item", item), Literal(f": {rating_text(score)}")) for item, score in pairs
        ],
        "candidate": [(Entity(title, "item", item),) for item, title in enumerate(titles)],
        "prediction": [(Literal(f"{tenths / 10:.1f}"),) for tenths in range(51)],
        "answer": [(Literal(str(score)),) for score in range(6)],
    }
    compiled = CompiledTemplate(renderer, template, {"noun": "movie"}, tables)
    histories = draw_rows(rng, 6, len(pairs), 1)
    items, guesses, answers = (rng.integers(0, top, 6) for top in (len(titles), 51, 6))
    guessed = [[guess] if n % 2 else [] for n, guess in enumerate(guesses.tolist())]
    samples = [
        rating_sample(
            template,
            RatingContext(
                n,
                [pairs[k] for k in histories[n]],
                int(items[n]),
                prediction=guesses[n] / 10 if n % 2 else None,
                answer=float(answers[n]),
            ),
            options,
        )
        for n in range(6)
    ]
    values = {
        "history": from_rows(histories),
        "candidate": from_column(items),
        "answer": from_column(answers),
    }
    got = compiled.render({**values, "prediction": from_rows(guessed)})
    assert_same(got, [renderer.render(sample) for sample in samples])


@SETTINGS
@given(titles=CATALOGUES, seed=SEEDS)
def test_a_prompt_that_begins_with_a_hole(renderer: Renderer, titles: list[str], seed: int) -> None:
    """The first line of a sequence has tokens of its own for some tokenizers."""
    template, options = load_template("browsing_bare", browsing.FAMILY), TextOptions(titles, "movie")
    rows = draw_rows(np.random.default_rng(seed), 6, len(titles), 1)
    details = [""] * len(titles)
    samples = [browsing_sample(template, n, row, options, details) for n, row in enumerate(rows)]
    lines = [item_line(place, n, options, details) for place in range(1, 6) for n in range(len(titles))]
    numbers = [[place * len(titles) + item for place, item in enumerate(row)] for row in rows]
    got = CompiledTemplate(renderer, template, {}, {"items": lines}).render({"items": from_rows(numbers)})
    assert_same(got, [renderer.render_text(sample) for sample in samples])


PAIR = Family("pair", frozenset({"history", "candidate"}), frozenset())


def pair_template(blocks: list[str]) -> Any:
    return build_template("pair", "pair", blocks, PAIR)


def test_lines_that_begin_with_a_slash_are_joined_as_the_tokenizer_does(renderer: Renderer) -> None:
    template = pair_template(["{history}", "/{candidate}/", "/end:\n{answer}"])
    titles = ["a", "/b", "c"]
    table = [(Entity(title, "item", item),) for item, title in enumerate(titles)]
    compiled = CompiledTemplate(
        renderer, template, {}, dict.fromkeys(("history", "candidate", "answer"), table)
    )
    values = {"history": [[0, 1], [2, 0], [1]], "candidate": [[0], [1], [2]], "answer": [[1], [0, 1], [2, 0]]}
    samples = []
    for n in range(3):
        shown = {name: lines([table[k] for k in rows[n]]) for name, rows in values.items()}
        samples.append(make_sample("pair", template, shown, user=n))
    got = compiled.render({name: from_rows(rows) for name, rows in values.items()})
    assert_same(got, [renderer.render(sample) for sample in samples])


def lines(rows: list[Any]) -> tuple[Segment, ...]:
    return tuple(segment for row in rows for segment in (*row, Literal("\n")))[:-1]


def small_compiled(renderer: Renderer) -> CompiledTemplate:
    template = pair_template(["History:\n{history}", "Item: {candidate}", "Answer:\n{answer}"])
    table = [(Entity(title, "item", item),) for item, title in enumerate(["Heat (1995)", "Alien (1979)"])]
    return CompiledTemplate(renderer, template, {}, dict.fromkeys(("history", "candidate", "answer"), table))


def small_values(**changed: list[list[int]]) -> dict[str, Ragged]:
    values = {"history": [[0, 1], [1]], "candidate": [[0], [1]], "answer": [[1], [0]], **changed}
    return {name: from_rows(rows) for name, rows in values.items()}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"history": [[2], [0]]}, r"\{history\} must lie in 0..1"),
        ({"history": [[-1], [0]]}, r"\{history\} must lie in 0..1"),
        ({"answer": [[1], []]}, "no answer"),
        ({"candidate": [[0, 1], [0]]}, r"\{candidate\} is part of a line"),
        ({"history": [[0]]}, "one row a sample"),
        ({"verb": [[0], [0]]}, r"\{verb\} has no table"),
    ],
)
def test_wrong_values_are_refused(renderer: Renderer, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_compiled(renderer).render(small_values(**changed))


def test_what_cannot_be_composed_is_refused(renderer: Renderer) -> None:
    table = [(Entity("Heat (1995)", "item", 0),)]
    tables = dict.fromkeys(("history", "candidate", "answer"), table)
    shared = pair_template(["{history} or {candidate}", "Answer:\n{answer}"])
    with pytest.raises(UserError, match="share a line"):
        CompiledTemplate(renderer, shared, {}, tables).render(from_lists([[0]], *tables))
    with pytest.raises(UserError, match="no such placeholder"):
        CompiledTemplate(renderer, shared, {}, {**tables, "verb": table})


def from_lists(rows: list[list[int]], *names: str) -> dict[str, Ragged]:
    return {name: from_rows(rows) for name in names}


@SETTINGS
@given(seed=SEEDS, capacity=st.integers(8, 90), window=st.integers(1, 40))
def test_packed_rows_are_the_streams(renderer: Renderer, seed: int, capacity: int, window: int) -> None:
    rng = np.random.default_rng(seed)
    histories = draw_rows(rng, 30, 2, 1)
    batch = small_compiled(renderer).render(
        {
            "history": from_rows(histories),
            "candidate": from_column(rng.integers(0, 2, 30)),
            "answer": from_column(rng.integers(0, 2, 30)),
        }
    )
    packed = list(pack_batch(batch, capacity, window))
    assert sorted(k for row in packed for k in row.sample_indices) == list(range(30))
    for row in packed:
        assert_same_row(row, build_row(batch, row.sample_indices))
        assert len(row.ids_T) <= capacity or len(row.sample_indices) == 1
    for step in PackedStream(batch, capacity, 2, window, seed=1, rank=0, world_size=1):
        for row in step.rows:
            if row.sample_indices:
                assert_same_row(build_rows(batch, [row.sample_indices])[0], row)


def assert_same_row(got: Any, want: Any) -> None:
    for name in ("ids_T", "position_ids_T", "labels_T", "boundaries"):
        a, b = getattr(got, name), getattr(want, name)
        assert a.dtype == b.dtype and torch.equal(a, b), name
    assert got.sample_indices == want.sample_indices and got.slots == want.slots


def test_slots_of_packed_rows(renderer: Renderer) -> None:
    template = pair_template(["{candidate} likes:\n{history}", "Answer:\n{answer}"])
    title = (Entity("Heat (1995)", "item", 0),)
    tables = {"candidate": [(Slot("user", 7),)], "history": [(*title, Slot("history", 0))], "answer": [title]}
    batch = CompiledTemplate(renderer, template, {}, tables).render(
        {
            "candidate": from_rows([[0]] * 3),
            "history": from_rows([[0], [0, 0], [0]]),
            "answer": from_rows([[0]] * 3),
        }
    )
    rows = [[2, 0], [1]]
    for got, want in zip(build_rows(batch, rows), (build_row(batch, row) for row in rows), strict=True):
        assert_same_row(got, want)
        assert got.slots and all(int(got.ids_T[place]) == renderer.pad_id for place, _, _ in got.slots)


def test_each_line_is_tokenised_once(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = small_compiled(renderer)
    first = compiled.render(small_values())
    monkeypatch.setattr(renderer, "encode_part", None)
    again = compiled.render(small_values())
    assert [again.ids(n).tolist() for n in range(2)] == [first.ids(n).tolist() for n in range(2)]
