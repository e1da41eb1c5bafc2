"""One corpus of several data sets, augmentation files of another run, attributes as features, no leak."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.shards import write_shards
from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.features import encode_features
from recloom.trainer.config_io import build_config
from recloom.trainer.stages import Run
from recloom.trainer.systems.llama4rec.augment import run_augment
from recloom.trainer.systems.llama4rec.augmented_data import augmented_tables
from recloom.trainer.systems.llama4rec.backbones import run_backbones
from recloom.trainer.systems.llama4rec.instructions import build_corpora
from recloom.trainer.systems.llama4rec.methods import Asking
from recloom.trainer.systems.llama4rec.rank import Asker, asked_lists, pointwise

sys.path.insert(0, str(Path(__file__).parents[2] / "launcher"))
sys.path.insert(0, str(Path(__file__).parent))
from small_recipe import small_config
from test_llama4rec_data import NUM_ITEMS, tables

__all__ = ["tables"]


def make_run(folder: Path, data: Tables, **blocks: dict[str, Any]) -> Run:
    raw = small_config(folder, Path("smollm2-135m-instruct"))
    raw["model"]["path"] = "smollm2-135m-instruct"
    raw["instructions"] |= {"per_task": 30, "holdback": 4}
    for name, block in blocks.items():
        raw[name] |= block
    data.save(folder / "data/tables")
    return Run(build_config(raw, "test"), folder, folder)


def corpus(run: Run, data: Tables) -> tuple[list[Any], list[Any]]:
    run_backbones(run)
    return build_corpora(run, data, leave_one_out(data, run.config.positive_rating))["llama4rec"]


def test_listwise_backbones_share_the_prompts_of_a_task(tables: Tables, tmp_path: Path) -> None:
    train, _ = corpus(make_run(tmp_path, tables, training={"ift": "separate"}), tables)
    assert Counter(sample.meta["task"] for sample in train) == {"listwise": 30, "rating": 30}


def test_other_runs_prompts_are_mixed_in_once_and_cut_to_the_limit(
    tables: Tables, tmp_path: Path, smollm2: Path
) -> None:
    other = make_run(tmp_path / "other", replace(tables, name="other"))
    theirs, their_valid = corpus(other, tables)
    renderer = Renderer(AutoTokenizer.from_pretrained(smollm2))
    for part, samples in (("train", theirs), ("valid", their_valid)):
        write_shards(samples, renderer, tmp_path / f"other/instructions/llama4rec/{part}", 20)
    renamed = replace(
        tables, items=tables.items.set_column(2, "title", [[f"Book {k}" for k in range(NUM_ITEMS)]])
    )
    also = {"also": [str(tmp_path / "other")]}
    own, own_valid = corpus(make_run(tmp_path / "alone", renamed), renamed)
    mixed, mixed_valid = corpus(make_run(tmp_path / "mixed", renamed, instructions=also), renamed)
    assert {s.key for s in mixed} == {s.key for s in own} | {s.key for s in theirs}
    assert len(mixed) == len(own) + len(theirs) and len(mixed_valid) == len(own_valid) + len(their_valid)
    again = make_run(tmp_path / "again", tables, instructions=also)
    assert len(corpus(again, tables)[0]) == len(theirs), "the same prompts are not there twice"
    cut = make_run(tmp_path / "cut", renamed, instructions={**also, "limit": 17})
    assert [s.key for s in corpus(cut, renamed)[0]] == [s.key for s in mixed[:17]]


def write_records(folder: Path, task: str, rows: list[dict[str, Any]]) -> None:
    path = folder / f"augment/{task}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_llms_attributes_become_features(tables: Tables, tmp_path: Path) -> None:
    run = make_run(tmp_path, tables)
    named = [{"item": k, "attributes": {"director": "AB"[k % 2]}} for k in range(0, 40)]
    write_records(tmp_path, "rating", [*named, {"item": 40, "attributes": None}])
    items = augmented_tables(run, tables).items
    assert items["llm_director"].to_pylist()[38:42] == ["A", "B", "", ""]
    assert set(items["llm_star"].to_pylist()) == {""}
    features = encode_features(items, skip=("item", "item_key", "title"))
    assert features.fields == ("llm_director",), "a column that says nothing is no feature"


def test_augmentation_files_serve_another_run_on_the_same_data(tables: Tables, tmp_path: Path) -> None:
    make_run(tmp_path / "first", tables)
    for task in ("direct", "sequential", "rating"):
        write_records(tmp_path / "first", task, [{"task": task}])
    reuse = {"reuse": str(tmp_path / "first")}
    run = make_run(tmp_path / "second", tables, augment=reuse)
    run_augment(run)
    assert run.path("augment/rating.jsonl").read_text() == '{"task": "rating"}\n'
    shuffled = replace(tables, interactions=tables.interactions.slice(0, 300))
    with pytest.raises(UserError, match="made on other data"):
        run_augment(make_run(tmp_path / "third", shuffled, augment=reuse))
    with pytest.raises(UserError, match="it has no data/tables"):
        run_augment(make_run(tmp_path / "fourth", tables, augment={"reuse": str(tmp_path / "nowhere")}))


@pytest.mark.parametrize("part", ["valid", "test"])
def test_no_target_stands_in_a_pointwise_history(
    tables: Tables, tmp_path: Path, smollm2: Path, part: Any
) -> None:
    """A top-k target may be rating's validation row: it is shown as the candidate only."""
    run = make_run(tmp_path, tables, rank={"reachable_only": False, "rating_rule": "integer"})
    run_backbones(run)
    splits = leave_one_out(tables, run.config.positive_rating)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    asker = Asker(run, tables, splits, Renderer(tokenizer), None)
    lists = asked_lists(asker, "direct", Asking("base", "augmented"), part)
    target = dict(zip(lists.users_B.tolist(), lists.targets_B.tolist(), strict=True))
    requests = list(pointwise(asker, Asking("base", "augmented"), lists, {}))
    assert len(requests) == int((lists.items_Bk >= 0).sum())
    for request in requests:
        text = tokenizer.decode(list(request.prompt_ids))
        history = text.split("Candidate Item:")[0]
        assert f"Film No. {target[request.meta['user']]}:" not in history
    assert np.unique([request.meta["user"] for request in requests]).size == len(lists.users_B)
