"""Texts of histories and items: the exact words, the keys, and shards of texts that no answer follows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Entity, Literal, Sample, sample_text
from recloom.data_shards.shards import ShardReader, verify_shards, write_shards
from recloom.data_shards.stream import IGNORE, PackedStream
from recloom.data_shards.textualize import next_item
from recloom.data_shards.textualize.browsing import FAMILY, browsing_sample, item_details
from recloom.data_shards.textualize.template import TextOptions, load_template

OPTIONS = TextOptions(["Alien (1979)", "Heat (1995)", "Kolya (1996)", "Heat (1995)"], "movie")
DETAILS = ["brand: Fox, category: Horror", "", "category: Drama", ""]
HISTORY = "1. Kolya (1996) (category: Drama)\n2. Heat (1995)\n3. Alien (1979) (brand: Fox, category: Horror)"
ASSISTANT = "You are an intelligent recommendation assistant. Please summarize the "
BROWSED = "In chronological order, the user has browsed the following movies:\n"
HEADS = {
    "browsing": f"{ASSISTANT}user's characteristics into a single token based on the browsing history. "
    + BROWSED,
    "browsing_no_phrase": f"{ASSISTANT}user's characteristics based on the browsing history. {BROWSED}",
    "browsing_bare": "",
    "browsing_item": f"{ASSISTANT}movie characteristics into a single token:\n",
}


def user_sample(name: str = "browsing", shown: tuple[int, ...] = (2, 1, 0), **meta: Any) -> Sample:
    return browsing_sample(load_template(name, FAMILY), 7, shown, OPTIONS, DETAILS, **meta)


def item_sample(item: int, name: str = "browsing") -> Sample:
    return browsing_sample(load_template(name, FAMILY), "item", [item], OPTIONS, DETAILS)


@pytest.mark.parametrize("name", HEADS)
def test_shipped_templates(name: str) -> None:
    assert sample_text(user_sample(name).prompt) == HEADS[name] + HISTORY
    item = HEADS[name] + "1. Alien (1979) (brand: Fox, category: Horror)"
    assert sample_text(item_sample(0, name).prompt) == item
    assert sample_text(item_sample(1, name).prompt) == HEADS[name] + "1. Heat (1995)"
    assert not user_sample(name).answer and not item_sample(0, name).answer


def test_meta_and_entities() -> None:
    sample = user_sample(target=3, history=[3, 2, 1, 0])
    told = {"task": "browsing", "user": 7, "items": [2, 1, 0], "target": 3, "history": [3, 2, 1, 0]}
    assert sample.meta == told, "the text shows less than is known"
    shown = [(part.text, part.kind, part.id) for part in sample.prompt if isinstance(part, Entity)]
    assert shown == [(OPTIONS.titles[item], "item", item) for item in (2, 1, 0)]
    assert user_sample().meta["history"] == [2, 1, 0] and user_sample().meta["target"] is None
    ids = browsing_sample(
        load_template("browsing", FAMILY), 7, np.array([2, 1]), OPTIONS, DETAILS, np.int64(3)
    ).meta
    assert all(type(value) is int for value in [*ids["items"], *ids["history"], ids["target"]])


def test_details_leave_out_what_is_blank_and_cut_words() -> None:
    columns = {"brand": ["Fox", None, "  ", "A  B\nC"], "category": ["a b c", "", "x", "\t"]}
    assert item_details(columns) == ["brand: Fox, category: a b c", "", "category: x", "brand: A B C"]
    assert item_details(columns, 2) == ["brand: Fox, category: a b", "", "category: x", "brand: A B"]
    assert item_details(dict(reversed(columns.items())), 1)[0] == "category: a, brand: Fox"


WORDS = st.text("ab  ,:(é\n\t", max_size=9)


@settings(max_examples=100, derandomize=True)
@given(st.lists(st.tuples(st.none() | WORDS, st.none() | WORDS), min_size=1, max_size=5), st.integers(1, 3))
def test_details_are_on_one_line_and_as_short_as_asked(
    rows: list[tuple[str | None, str | None]], words: int
) -> None:
    columns = {"b": [row[0] for row in rows], "c": [row[1] for row in rows]}
    whole, cut = item_details(columns), item_details(columns, words)
    for row, text, short in zip(rows, whole, cut, strict=True):
        values = [(name, (value or "").split()) for name, value in zip("bc", row, strict=True)]
        assert text == ", ".join(f"{name}: {' '.join(parts)}" for name, parts in values if parts)
        assert short == ", ".join(f"{name}: {' '.join(parts[:words])}" for name, parts in values if parts)


def test_keys_are_unique_over_a_catalogue_with_equal_titles() -> None:
    items = [item_sample(item) for item in range(4)]
    assert sample_text(items[1].prompt) == sample_text(items[3].prompt)
    users = [user_sample(target=1), user_sample(target=3), user_sample(), user_sample(shown=(2, 1, 0, 0))]
    assert len({sample.key for sample in items + users}) == 8
    assert all(sample.key.startswith("browsing-item-") for sample in items)
    assert item_sample(1).key == items[1].key != item_sample(1, "browsing_bare").key


def test_braces_in_titles_and_details_are_words() -> None:
    options = TextOptions(["{items} {noun}"], "movie")
    sample = browsing_sample(load_template("browsing_bare", FAMILY), 1, [0], options, ["brand: {answer}"])
    assert sample_text(sample.prompt) == "1. {items} {noun} (brand: {answer})"


def written_template(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(f"blocks:\n  - |-\n    {text}\n")
    return path


def test_a_template_of_ones_own_needs_its_items_and_no_answer(tmp_path: Path) -> None:
    path = written_template(tmp_path, "{noun}s:\n    {items}\n    Thanks.")
    assert not FAMILY.answered and load_template(path, FAMILY).fields == {"noun", "items"}
    sample = browsing_sample(load_template(path, FAMILY), 1, [1], OPTIONS, DETAILS)
    assert sample_text(sample.prompt) == "movies:\n1. Heat (1995)\nThanks."
    with pytest.raises(UserError, match=r"placeholder \{items\} is missing: browsing needs it\.$"):
        load_template(written_template(tmp_path, "{noun}"), FAMILY)
    with pytest.raises(UserError, match=r"unknown placeholder \{answer\}: browsing has items, noun\.$"):
        load_template(written_template(tmp_path, "{items}\n    {answer}"), FAMILY)


def test_other_families_still_need_their_answer(tmp_path: Path) -> None:
    path = written_template(tmp_path, "{history} {candidates}")
    with pytest.raises(UserError, match=r"placeholder \{answer\} is missing"):
        load_template(path, next_item.FAMILY)


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> Any:
    return tokenizer_of(smollm2)


@pytest.fixture(scope="module")
def llama2(shared_data: Path) -> Any:
    """Puts a start token before every text."""
    return tokenizer_of(shared_data / "llama2-tokenizer")


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("name", "start"), [("smol", False), ("smol", True), ("llama2", False)])
def test_a_text_has_the_ids_of_a_prompt_in_training(
    name: str, start: bool, request: pytest.FixtureRequest
) -> None:
    """Those before the answer of the same prompt with one, a start token included."""
    tokenizer = request.getfixturevalue(name)
    renderer = Renderer(tokenizer, start=start)
    for sample in (user_sample(), item_sample(3), user_sample("browsing_bare")):
        text = renderer.render_text(sample)
        prompt = (*sample.prompt, Literal("\n"))
        trained = renderer.render(Sample("k", prompt, (Literal("x"),), {}))
        newline = trained.num_prompt - len(text.ids_T)
        assert newline == 1 and text.num_prompt == len(text.ids_T)
        assert text.ids_T.tolist() == trained.ids_T[: len(text.ids_T)].tolist()
        assert text.ids_T.tolist() == renderer.render_prompt(sample.prompt) and text.ids_T.dtype == np.int32
        assert text.entity_spans == trained.entity_spans and not text.slots
        begins = text.ids_T[0] == tokenizer.bos_token_id
        assert begins == (start or name == "llama2")
        assert tokenizer.eos_token_id not in text.ids_T[1:]
        shown = tokenizer.decode(text.ids_T, skip_special_tokens=True)
        assert shown.strip() == sample_text(sample.prompt)


def many_samples(count: int = 25) -> list[Sample]:
    template = load_template("browsing_bare", FAMILY)
    walks = [[(user + n) % 4 for n in range(1 + user % 6)] for user in range(count)]
    return [
        browsing_sample(template, user, walk[-3:], OPTIONS, DETAILS, user % 4, walk)
        for user, walk in enumerate(walks)
    ]


@pytest.fixture(scope="module")
def renderer(smol: Any) -> Renderer:
    return Renderer(smol)


@pytest.fixture(scope="module")
def folder(renderer: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_shards(many_samples(), renderer, folder, samples_per_shard=10, answered=False, part="train")
    return folder


def test_shards_of_texts_read_back(folder: Path, renderer: Renderer) -> None:
    manifest = verify_shards(folder)
    reader = ShardReader(folder)
    assert (manifest["num_samples"], manifest["num_shards"], manifest["part"]) == (25, 3, "train")
    assert manifest["num_answer_tokens"] == 0 and manifest["num_slots"] == 0 and not reader.has_slots
    assert reader.lengths_N.tolist() == reader.num_prompt_N.tolist() and len(reader) == 25
    for n, sample in enumerate(many_samples()):
        assert reader.ids(n).tolist() == renderer.render_text(sample).ids_T.tolist()
        assert reader.sample(n) == sample and reader.record(n)["meta"]["history"] == sample.meta["history"]
        assert reader.record(n)["text"] == sample_text(sample.prompt)


def test_answers_are_asked_for_unless_said(renderer: Renderer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no answer to train on"):
        write_shards(many_samples(1), renderer, tmp_path)


def test_equal_texts_make_equal_shards(folder: Path, renderer: Renderer, tmp_path: Path) -> None:
    write_shards(many_samples(), renderer, tmp_path, samples_per_shard=10, answered=False, part="train")
    one, two = ({p.name: p.read_bytes() for p in path.iterdir()} for path in (tmp_path, folder))
    assert one == two


@pytest.mark.parametrize(("capacity", "world_size"), [(16, 1), (60, 1), (60, 2)])
def test_the_stream_packs_texts(folder: Path, capacity: int, world_size: int) -> None:
    """Every text once an epoch, whole, in rows within the capacity; nothing of it is a label."""
    reader = ShardReader(folder)
    streams = [PackedStream(reader, capacity, 4, 16, 3, rank, world_size) for rank in range(world_size)]
    seen: list[int] = []
    for batches in zip(*streams, strict=True):
        assert all(batch.num_answer_tokens == 0 for batch in batches)
        for row in (row for batch in batches for row in batch.rows):
            seen += row.sample_indices
            assert (row.labels_T == IGNORE).all()
            ends = list(pairwise(row.boundaries.tolist()))
            for index, (start, end) in zip(row.sample_indices, ends, strict=bool(row.sample_indices)):
                assert row.ids_T[start:end].tolist() == reader.ids(index).tolist()
            assert len(row.ids_T) <= capacity or len(row.sample_indices) == 1
    assert sorted(seen) == list(range(25))
