"""The texts that stage texts writes: what they show, what their meta knows, what they are refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recloom.data_shards.errors import UserError
from recloom.data_shards.samples import sample_text
from recloom.data_shards.shards import ShardReader, verify_shards
from recloom.data_shards.tables import Tables, assemble_tables
from recloom.data_shards.textualize.template import FOLDER
from recloom.trainer.config_io import build_config
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser.settings import LaserConfig, TextsBlock
from recloom.trainer.systems.laser.task import Example, load_task
from recloom.trainer.systems.laser.texts import LEARNED_PARTS, Writer, details_of, run_texts

TITLES = ("Red  thing", "Blue thing of three words", "Grey", "Grey", "Last\none")
BRANDS = ("Acme Tools Inc", None, "  ", "Acme", "Bolt")
CATEGORIES = ("Tools|Hand Tools", "Tools", None, "Toys", "a|")
PARTS = (*LEARNED_PARTS, "test")
PRICES = ("1", "2", "3", "4", "5")


def tables(names: tuple[str, ...] = ("category", "brand", "price")) -> Tables:
    """Five items, two of one title; three users who have walked over 3, 4 and 5 of them."""
    columns = {"brand": BRANDS, "category": CATEGORIES, "price": PRICES}
    known: dict[str, Any] = {"item_key": [f"i{item}" for item in range(5)], "title": list(TITLES)}
    known |= {name: pa.array(columns[name], pa.string()) for name in names}
    walks = ([0, 1, 2], [1, 2, 3, 4], [4, 3, 2, 1, 0])
    users = [f"u{user}" for user, walk in enumerate(walks) for _ in walk]
    items = [f"i{item}" for walk in walks for item in walk]
    rows = {"user_key": users, "item_key": items, "timestamp": pa.array(range(len(users)), pa.int64())}
    return assemble_tables(
        "Shop", pa.table(rows), pa.table(known), pa.table({"user_key": ["u0", "u1", "u2"]})
    )


def text_of(example: Example, **texts: Any) -> str:
    return sample_text(Writer(TextsBlock(template="browsing_bare", **texts), tables()).user(example).prompt)


EXAMPLE = Example(7, np.array([4, 0, 1, 2], dtype=np.int32), 3)


def test_the_papers_attributes_in_the_papers_order() -> None:
    assert text_of(EXAMPLE) == (
        "1. Last one (brand: Bolt, category: a)\n"
        "2. Red thing (brand: Acme Tools Inc, category: Tools, Hand Tools)\n"
        "3. Blue thing of three words (category: Tools)\n"
        "4. Grey"
    )


def test_attributes_of_ones_own_and_words_cut() -> None:
    cut = {"title_words": 2, "attribute_words": 1}
    assert text_of(EXAMPLE, attributes=("price", "brand"), **cut) == (
        "1. Last one (price: 5, brand: Bolt)\n2. Red thing (price: 1, brand: Acme)\n"
        "3. Blue thing (price: 2)\n4. Grey (price: 3)"
    )
    assert text_of(EXAMPLE, attributes=()) == (
        "1. Last one\n2. Red thing\n3. Blue thing of three words\n4. Grey"
    )


def test_where_the_papers_attributes_are_not_all_there() -> None:
    assert details_of(tables(("category",)), TextsBlock())[1] == "category: Tools"
    assert details_of(tables(("price",)), TextsBlock()) == [""] * 5, "a price is none of them"
    assert details_of(tables(()), TextsBlock()) == [""] * 5


@pytest.mark.parametrize(
    ("names", "choice"), [(("brand", "price"), "brand, price"), ((), "none"), (("brand",), "brand")]
)
def test_an_unknown_attribute_is_one_sentence(names: tuple[str, ...], choice: str) -> None:
    with pytest.raises(UserError) as caught:
        details_of(tables(names), TextsBlock(attributes=("brand", "colour")[not names or 0 :]))
    text = str(caught.value)
    assert text.startswith("texts.attributes: ") and text.endswith(f"choose from {choice}.")
    assert "no attribute of Shop" in text and "\n" not in text
    with pytest.raises(UserError, match="title named"):
        details_of(tables(names), TextsBlock(attributes=("title",)))


def test_the_text_shows_the_latest_items_and_meta_knows_all() -> None:
    sample = Writer(TextsBlock(history_items=2), tables()).user(EXAMPLE)
    assert sample.meta["items"] == [1, 2] and sample.meta["history"] == [4, 0, 1, 2]
    assert (sample.meta["target"], sample.meta["user"]) == (3, 7)
    text = sample_text(sample.prompt)
    assert text.endswith("items:\n1. Blue thing of three words (category: Tools)\n2. Grey")
    assert "Red" not in text and "Last" not in text
    assert Writer(TextsBlock(history_items=4), tables()).user(EXAMPLE).meta["items"] == [4, 0, 1, 2]


def test_items_are_histories_of_one_or_have_a_template_of_their_own() -> None:
    same = Writer(TextsBlock(item_noun="film"), tables())
    assert sample_text(same.item(3).prompt) == sample_text(same.user(Example(1, np.array([3]), 0)).prompt)
    assert same.item(3).meta == {
        "task": "browsing",
        "user": "item",
        "items": [3],
        "target": None,
        "history": [3],
    }
    own = Writer(TextsBlock(item_noun="film", item_template="browsing_item"), tables())
    assert sample_text(own.item(3).prompt).startswith("You are an intelligent recommendation assistant. ")
    assert "summarize the film characteristics into a single token:\n1. Grey" in sample_text(
        own.item(3).prompt
    )
    assert sample_text(own.user(EXAMPLE).prompt) == sample_text(same.user(EXAMPLE).prompt)


@pytest.fixture(scope="module")
def run(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Run[LaserConfig]:
    """A run behind stage texts."""
    raw = {
        "name": "small",
        "system": "laser",
        "data": {"source": "movielens", "variant": "100k"},
        "model": {"path": str(tiny_llama)},
        "backbones": {"sequential": {"model": "sasrec"}},
        "texts": {"history_items": 2, "item_template": "browsing_item"},
        "learn": {"targets": "all"},
    }
    config = build_config(raw, "test")
    assert isinstance(config, LaserConfig)
    folder = tmp_path_factory.mktemp("run")
    run = Run(config, folder, folder / "cache")
    tables().save(run.path("data/tables"))
    run_texts(run, PARTS)
    return run


def test_the_stage_writes_every_item_and_every_example(run: Run[LaserConfig]) -> None:
    task, writer = load_task(run), Writer(run.config.texts, tables())
    examples = {"train": task.train, "valid": task.valid, "test": task.test}
    wanted = {part: [writer.user(example) for example in found] for part, found in examples.items()}
    wanted["items"] = [writer.item(item) for item in range(5)]
    assert [len(wanted[part]) for part in PARTS] == [5, 1 + 2, 3, 3]
    for part in PARTS:
        manifest, reader = verify_shards(run.path(f"texts/{part}")), ShardReader(run.path(f"texts/{part}"))
        assert manifest["part"] == part and manifest["num_answer_tokens"] == 0
        assert [reader.sample(n) for n in range(len(reader))] == wanted[part]
    shown = ShardReader(run.path("texts/test")).record(2)["meta"]
    assert len(shown["items"]) == 2 and len(shown["history"]) == 4


def test_every_shipped_template_of_the_family_is_tried() -> None:
    """Another one would need its exact text in test_browsing.py."""
    names = {path.stem for path in FOLDER.glob("browsing*.yaml")}
    assert names == {"browsing", "browsing_bare", "browsing_item", "browsing_no_phrase"}
