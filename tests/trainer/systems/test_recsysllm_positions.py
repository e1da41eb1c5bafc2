"""Dynamic positions against the paper's words written out, and against the numbers of training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from blank_networks import IDS, WORDS, random_text

from recloom.data_shards.masking import blank
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Entity, Literal, Sample
from recloom.data_shards.spans import MaskSettings
from recloom.kernels.token_trie import TokenTrie
from recloom.kernels.trie_build import trie_of
from recloom.trainer.models import load_tokenizer
from recloom.trainer.systems.recsysllm.positions import (
    IntraCounter,
    count_intra,
    entity_pool,
    entity_texts,
)

SETTINGS = settings(max_examples=150, deadline=None, derandomize=True)
TOKENS = st.integers(0, 3)  # so few that paths begin, part and end all the time
POOLS = st.lists(st.lists(TOKENS, min_size=1, max_size=5), min_size=1, max_size=6)
E1, E2, X4, X5 = [1, 2, 3], [6, 7], 4, 5  # the paper's example: x1 x2 x3 are e1, x6 x7 are e2


def pool_of(entities: Sequence[Sequence[int]]) -> TokenTrie:
    return trie_of([list(entity) for entity in entities], end_token=IDS.end, vocab_size=IDS.end + 1)


def slow_intra(entities: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[int]:
    """A token counts on while some entity begins with the path and it; else it is the head of a new path."""
    ids, path = [1], list[int]()
    for place, token in enumerate(tokens):
        longer = [*path, token]
        goes_on = any(list(entity[: len(longer)]) == longer for entity in entities)
        if place == 0:  # [START] is the head of the first unit, whatever it is
            ids.append(2)
            path = [token]
        elif goes_on:
            ids.append(ids[-1] + 1)
            path = longer
        else:
            ids.append(1)
            path = [token]
    return ids


@SETTINGS
@given(entities=POOLS, tokens=st.lists(TOKENS, max_size=14))
def test_ids_are_the_slow_ones(entities: list[list[int]], tokens: list[int]) -> None:
    assert count_intra(pool_of(entities), tokens) == slow_intra(entities, tokens)


@SETTINGS
@given(seed=st.integers(0, 9999), num_units=st.integers(1, 12))
def test_generation_numbers_a_span_as_training_does(seed: int, num_units: int) -> None:
    """Where no token of a text goes on with another's path: all of its entities are in the pool."""
    ids_T, spans = random_text(np.random.default_rng(seed), num_units)
    masked = blank(ids_T, spans, [(0, len(ids_T))], MaskSettings(), IDS, "document")
    pool = pool_of([ids_T[start:end].tolist() for start, end in spans] or [[WORDS - 1]])
    assert count_intra(pool, ids_T.tolist()) == masked.intra_T[masked.num_a :].tolist()


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        (E1, [1, 2, 3, 4]),
        ([X5], [1, 2]),
        ([*E1, X4, X5, *E2], [1, 2, 3, 4, 1, 1, 1, 2]),
        ([X4, *E1], [1, 2, 1, 2, 3]),
        ([*E2, *E2], [1, 2, 3, 1, 2]),
        ([1, 2, X4, 3], [1, 2, 3, 1, 1]),  # a path that ends early
        ([2, 3], [1, 2, 1]),  # the inside of an entity is none
        ([], [1]),
    ],
)
def test_the_papers_example(tokens: list[int], wanted: list[int]) -> None:
    assert count_intra(pool_of([E1, E2]), tokens) == wanted


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4, 5]),  # the longer one
        ([1, 2, 1, 2], [1, 2, 3, 1, 2]),
        ([1, 2, 3, 1], [1, 2, 3, 4, 1]),
        ([1, 2, 9], [1, 2, 3, 1]),
        ([9, 1, 2, 3, 4, 9], [1, 2, 1, 2, 3, 4, 1]),
    ],
)
def test_the_longer_entity_wins_while_it_matches(tokens: list[int], wanted: list[int]) -> None:
    assert count_intra(pool_of([[1, 2], [1, 2, 3, 4]]), tokens) == wanted


def test_without_entities_a_span_counts_through() -> None:
    counter = IntraCounter(pool_of([E1, E2]), counts_on=True)
    assert [counter.next_id(token) for token in (*E1, X4, *E2, X5)] == [2, 3, 4, 5, 6, 7, 8]


# --- the pool -----------------------------------------------------------------------------------------


def test_entity_texts() -> None:
    """Titles and single values, each once, on one line, in order, none blank."""
    texts = entity_texts(["Toy  Story (1995)", "Heat"], ["Action|Drama", None, "", "Heat", " Drama | ", "  "])
    assert texts == ["Toy Story (1995)", "Heat", "Action", "Drama"]


def test_the_pool_knows_an_entity_on_its_line_and_in_a_text(tiny_llama: Path) -> None:
    """Also where a tokenizer spells the two otherwise, as with the space before."""
    renderer = Renderer(load_tokenizer(str(tiny_llama)), start=True)
    titles = ["Toy Story (1995)", "Toy Story 2 (1999)", "Été, 東京", "Heat"]
    pool = entity_pool(titles, renderer, IDS.end + 10**5)
    for title in titles:
        alone = renderer.answer_ids(title)
        assert count_intra(pool, alone) == list(range(1, len(alone) + 2))
        text = (Literal("Seen before: "), Entity(title, "item", 1), Literal(" | "), Entity(title, "item", 1))
        rendered = renderer.render_text(Sample("text", text, (), {}))
        body = rendered.ids_T.tolist()
        ids = count_intra(pool, body)[1:]
        spellings = []
        for start, end, *_ in rendered.entity_spans:
            spellings.append(body[start:end])
            assert ids[start:end] == list(range(1, end - start + 1)), renderer.text(body[start:end])
        assert spellings[0] == spellings[1] != alone
    first = [renderer.answer_ids(title)[0] for title in titles]
    assert first[0] == first[1], "two titles part inside the pool"
