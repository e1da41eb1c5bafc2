"""Llama4Rec's corpus: cross-fitting, no leak, prompt augmentations on and off."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recloom.data_shards.samples import Sample, sample_text
from recloom.data_shards.splits import Interactions, leave_one_out
from recloom.data_shards.tables import Tables
from recloom.trainer.config_io import build_config
from recloom.trainer.stages import Run
from recloom.trainer.systems.llama4rec.backbones import held_back_mask, inner_split, run_backbones
from recloom.trainer.systems.llama4rec.instructions import build_corpora

sys.path.insert(0, str(Path(__file__).parents[2] / "launcher"))
from small_recipe import small_config

NUM_USERS, NUM_ITEMS = 40, 60


@pytest.fixture(scope="module")
def tables() -> Tables:
    """Random ratings: 40 users with 12 to 30 items each."""
    rng = np.random.default_rng(0)
    rows = [
        (user, int(item), float(rng.integers(1, 6)), time)
        for user in range(NUM_USERS)
        for time, item in enumerate(rng.permutation(NUM_ITEMS)[: rng.integers(12, 31)])
    ]
    user, item, rating, time = zip(*rows, strict=True)
    interactions = pa.table(
        {
            "user": pa.array(user, pa.int32()),
            "item": pa.array(item, pa.int32()),
            "rating": pa.array(rating, pa.float32()),
            "timestamp": pa.array(time, pa.int64()),
        }
    )
    items = pa.table(
        {
            "item": pa.array(range(NUM_ITEMS), pa.int32()),
            "item_key": [f"i{k}" for k in range(NUM_ITEMS)],
            "title": [f"Film No. {k}" for k in range(NUM_ITEMS)],
        }
    )
    users = pa.table(
        {"user": pa.array(range(NUM_USERS), pa.int32()), "user_key": [f"u{k}" for k in range(NUM_USERS)]}
    )
    return Tables("random", interactions, items, users)


def make_run(folder: Path, tables: Tables, **prompts: object) -> Run:
    raw = small_config(folder, Path("smollm2-135m-instruct"))
    raw["model"]["path"] = "smollm2-135m-instruct"
    raw["prompts"] |= prompts
    raw["instructions"] |= {"per_task": 60, "holdback": 4}
    run = Run(build_config(raw, "test"), folder, folder)
    tables.save(folder / "data/tables")
    return run


def corpus(folder: Path, tables: Tables, **prompts: object) -> list[Sample]:
    run = make_run(folder, tables, **prompts)
    run_backbones(run)
    corpora = build_corpora(run, tables, leave_one_out(tables, run.config.positive_rating))
    return [sample for train, valid in corpora.values() for sample in train + valid]


def with_other_test_targets(tables: Tables) -> Tables:
    """Every test row of either task names another item."""
    splits = leave_one_out(tables, 4.0)
    item_N = tables.interactions["item"].to_numpy().copy()
    for rows in (splits.topk.test, splits.rating.test):
        item_N[rows.order_N] = (item_N[rows.order_N] + 17) % NUM_ITEMS
    column = tables.interactions.column_names.index("item")
    return replace(
        tables, interactions=tables.interactions.set_column(column, "item", pa.array(item_N, pa.int32()))
    )


def test_test_targets_do_not_reach_the_training_set(tables: Tables, tmp_path: Path) -> None:
    changed = with_other_test_targets(tables)
    assert changed.interactions != tables.interactions
    first = corpus(tmp_path / "a", tables)
    second = corpus(tmp_path / "b", changed)
    assert [sample.to_json() for sample in first] == [sample.to_json() for sample in second]


def test_targets_are_held_back_from_what_the_prompt_shows(tables: Tables, tmp_path: Path) -> None:
    """History, similar user's history and prediction come from rows and a backbone without the targets."""
    splits = leave_one_out(tables, 4.0)
    held = splits.topk.train.select(held_back_mask(splits.topk.train, 4))
    held_pairs = set(zip(held.user_N.tolist(), held.item_N.tolist(), strict=True))
    train = splits.topk.train
    known = set(zip(train.user_N.tolist(), train.item_N.tolist(), strict=True)) - held_pairs
    samples = [s for s in corpus(tmp_path, tables) if s.meta["task"] == "listwise"]
    assert samples
    for sample in samples:
        user, targets = (
            sample.meta["user"],
            [i for i in sample.meta["answer"] if (sample.meta["user"], i) in held_pairs],
        )
        assert targets, "the answer begins with held-back items"
        assert sample.meta["answer"][: len(targets)] == targets
        lines = sample_text(sample.prompt).split("\n")
        history = lines[
            lines.index("Interaction History:" if "Interaction History:" in lines else "Liked:") + 1 :
        ]
        for title in history[: next(k for k, line in enumerate(history) if line.endswith(":"))]:
            assert (user, int(title.removeprefix("Film No. "))) in known


def test_rated_items_lead_by_rating_then_recency(tables: Tables, tmp_path: Path) -> None:
    train = leave_one_out(tables, 4.0).topk.train
    value = {(u, i): (r, o) for u, i, r, o in zip(*vars_of(train), strict=True)}
    for sample in corpus(tmp_path, tables):
        if sample.meta["task"] == "listwise":
            ranked = [
                value[sample.meta["user"], i]
                for i in sample.meta["answer"]
                if (sample.meta["user"], i) in value
            ]
            assert ranked == sorted(ranked, reverse=True)


def vars_of(rows: Interactions) -> list[list[float]]:
    return [rows.user_N.tolist(), rows.item_N.tolist(), rows.rating_N.tolist(), rows.order_N.tolist()]


def test_inner_split_loses_only_the_latest_training_rows(tables: Tables) -> None:
    split = leave_one_out(tables, None).rating
    inner = inner_split(split, 4)
    for user in range(NUM_USERS):
        full = split.train.item_N[split.train.user_N == user].tolist()
        assert (
            inner.train.item_N[inner.train.user_N == user].tolist()
            == full[: len(full) - min(4, len(full) // 2)]
        )
    assert inner.valid is split.valid and inner.test is split.test


@pytest.mark.parametrize(
    ("switch", "heading"),
    [("similar_user", "Similar User"), ("backbone_prediction", "Conventional Model Prediction")],
)
def test_each_prompt_augmentation_switches_off(
    tables: Tables, tmp_path: Path, switch: str, heading: str
) -> None:
    def shown(samples: list[Sample]) -> int:
        return sum(heading in sample_text(sample.prompt) for sample in samples)

    assert shown(corpus(tmp_path / "on", tables)) > 0
    assert shown(corpus(tmp_path / "off", tables, **{switch: False})) == 0


def test_no_prompt_twice(tables: Tables, tmp_path: Path) -> None:
    keys = [sample.key for sample in corpus(tmp_path, tables)]
    assert len(keys) == len(set(keys))
