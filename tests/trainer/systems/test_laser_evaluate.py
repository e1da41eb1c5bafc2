"""Ranks, metrics and exported vectors of known numbers, against counting by hand.

Shapes: N users asked, I items, H width of the LLM, K places of a list.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from recloom.data_shards.artifacts import read_manifest
from recloom.data_shards.errors import UserError
from recloom.data_shards.tables import Tables, assemble_tables
from recloom.kernels.full_rank import full_rank
from recloom.trainer.collaborative import mf
from recloom.trainer.config_io import build_config
from recloom.trainer.metrics import one_target_metrics
from recloom.trainer.results import Results
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser.embedding import read_vectors, write_vectors
from recloom.trainer.systems.laser.evaluate import asked_users, backbone_ranks, ranks_of
from recloom.trainer.systems.laser.export import run_export
from recloom.trainer.systems.laser.methods import METHODS
from recloom.trainer.systems.laser.rank import keep_ranking, rank_folder, ranked, ranking_path
from recloom.trainer.systems.laser.settings import LaserConfig
from recloom.trainer.systems.laser.task import Example, Task, load_task

NUM_USERS, NUM_ITEMS, H = 30, 24, 6
LASER = METHODS["laser"]


def small_tables() -> Tables:
    """Three to seven items a user; some buy their first item again at the end."""
    rng = np.random.default_rng(4)
    walks = [rng.choice(NUM_ITEMS, 3 + user % 5, replace=False).tolist() for user in range(NUM_USERS)]
    walks = [[*walk, walk[0]] if user % 4 == 0 else walk for user, walk in enumerate(walks)]
    users = [f"u{user:02}" for user, walk in enumerate(walks) for _ in walk]
    items = [f"i{item:02}" for walk in walks for item in walk]
    rows = {"user_key": users, "item_key": items, "timestamp": pa.array(range(len(users)), pa.int64())}
    keys = [f"i{item:02}" for item in range(NUM_ITEMS)]
    known = pa.table({"item_key": keys, "title": [f"Thing {item}" for item in range(NUM_ITEMS)]})
    return assemble_tables("small", pa.table(rows), known, pa.table({"user_key": sorted(set(users))}))


def small_run(folder: Path, **blocks: Any) -> Run[LaserConfig]:
    """A run whose vectors have been made: users' and items' are random, items 3 and 4 have the same."""
    raw = {
        "name": "small",
        "system": "laser",
        "seed": 3,
        "data": {"source": "movielens", "variant": "100k"},
        "model": {"path": "none"},
        "backbones": {"sequential": {"model": "sasrec"}},
        "evaluate": {"ks": [1, 5]},
    }
    config = build_config(raw | blocks, "test")
    assert isinstance(config, LaserConfig)
    run = Run(config, folder, folder / "cache")
    small_tables().save(run.path("data/tables"))
    torch.manual_seed(0)
    items_IH = torch.randn(NUM_ITEMS, H) * torch.rand(NUM_ITEMS, 1) * 9
    items_IH[4] = items_IH[3]
    write_vectors(run.path("tune/laser_2/model/items"), items_IH)
    write_vectors(rank_folder(run, LASER), torch.randn(len(load_task(run).test), H))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run[LaserConfig]:
    run = small_run(tmp_path_factory.mktemp("run"))
    keep_ranking(run, load_task(run), LASER)
    run_export(run)
    return run


def vectors(run: Run[LaserConfig]) -> tuple[Tensor, Tensor]:
    return read_vectors(rank_folder(run, LASER)), read_vectors(run.path("tune/laser_2/model/items"))


def task_for(examples: list[Example]) -> Task:
    nothing: Any = None
    return Task(nothing, nothing, [], [], examples)


def rank_by_hand(scores: list[float], target: int, left_out: set[int]) -> int:
    """From 0: other items that are as good or better."""
    kept = [item for item in range(len(scores)) if item != target and item not in left_out - {target}]
    return sum(scores[item] >= scores[target] for item in kept)


# one axis a vector, so that cosines are exact and often equal
AXES = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 2, -4])), min_size=1, max_size=8)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.data(), AXES, st.booleans())
def test_ties_stand_against_the_target(data: st.DataObject, axes: list[tuple[int, int]], mask: bool) -> None:
    items_IH = torch.zeros(len(axes), 3)
    for item, (axis, value) in enumerate(axes):
        items_IH[item, axis] = value
    places = st.integers(0, len(axes) - 1)
    examples = [
        Example(user, np.array(data.draw(st.lists(places, min_size=1, max_size=4))), data.draw(places))
        for user in range(3)
    ]
    users_NH = torch.eye(3)
    found = ranked(task_for(examples), users_NH, items_IH, mask)
    assert found.target_ranks_N is not None
    for n, example in enumerate(examples):
        scores = [float(np.sign(value)) * (axis == n) for axis, value in axes]
        seen = set(example.history.tolist()) if mask else set()
        want = rank_by_hand(scores, example.target, seen)
        assert found.target_ranks_N[n] == want, (axes, example)
        shown = [item for item in found.top_items_NK[n].tolist() if item >= 0]
        left = [item for item in range(len(axes)) if item not in seen - {example.target}]
        assert shown == sorted(left, key=lambda item: (-scores[item], item))[:10]


def test_the_kept_ranking(run: Run[LaserConfig]) -> None:
    task, (users_NH, items_IH) = load_task(run), vectors(run)
    cosines_NI = torch.cosine_similarity(users_NH[:, None].double(), items_IH[None].double(), dim=2)
    table = pq.read_table(ranking_path(run, LASER)).to_pylist()
    assert len(table) == len(task.test) == NUM_USERS
    for row, example, cosines_I in zip(table, task.test, cosines_NI, strict=True):
        assert (row["user"], row["target"]) == (example.user, example.target)
        scores = cosines_I.float().tolist()
        ties = [round(score, 6) for score in scores]
        assert row["rank"] == 1 + rank_by_hand(ties, example.target, set())
        assert row["items"] == sorted(range(NUM_ITEMS), key=lambda item: (-ties[item], item))[:10]
        assert row["cosines"] == pytest.approx([scores[item] for item in row["items"]], abs=1e-5)
    assert ranks_of(run, task, LASER).tolist() == [row["rank"] for row in table]


def test_items_seen_are_left_out_when_asked(tmp_path: Path, run: Run[LaserConfig]) -> None:
    masked = small_run(tmp_path, rank={"mask_seen": True})
    task = load_task(masked)
    keep_ranking(masked, task, LASER)
    again = 0
    for n, row in enumerate(pq.read_table(ranking_path(masked, LASER)).to_pylist()):
        seen = set(task.test[n].history.tolist())
        again += task.test[n].target in seen
        assert not (seen - {task.test[n].target}) & set(row["items"])
    assert again > 3, "what is bought again stays in"
    better, plain = ranks_of(masked, task, LASER), ranks_of(run, task, LASER)
    assert (better <= plain).all() and (better < plain).any()


def test_rankings_of_other_users_are_refused(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    task = load_task(run)
    keep_ranking(run, task, LASER)
    fewer = Task(task.tables, task.splits, task.train, task.valid, task.test[:-1])
    with pytest.raises(UserError, match=r"^rank: its rankings are of other users: run it again .*\.$"):
        ranks_of(run, fewer, LASER)


def test_metric_rows(run: Run[LaserConfig]) -> None:
    """Every metric, overall and by the target's popularity in training; one row a user of each."""
    task = load_task(run)
    ranks_N = np.arange(1.0, NUM_USERS + 1)
    results = Results(task.tables.name, run.config.seed)
    results.add(asked_users(run.config, task), "X", one_target_metrics(ranks_N, run.config.evaluate.ks))
    count_I = np.bincount(task.splits.topk.train.item_N, minlength=NUM_ITEMS)
    order = sorted(range(NUM_ITEMS), key=lambda item: (-count_I[item], item))
    size = NUM_ITEMS * 35 // 100
    groups = {"overall": set(order), "warm": set(order[:size]), "cold": set(order[-size:])}
    assert {row["scenario"] for row in results.rows} == set(groups) and len(results.rows) == 3 * 5
    for row in results.rows:
        inside = [n for n, example in enumerate(task.test) if example.target in groups[row["scenario"]]]
        ranks = [n + 1 for n in inside]
        values = {
            "H@1": [float(rank <= 1) for rank in ranks],
            "H@5": [float(rank <= 5) for rank in ranks],
            "N@1": [float(rank <= 1) for rank in ranks],
            "N@5": [1 / math.log2(rank + 1) if rank <= 5 else 0.0 for rank in ranks],
            "MRR": [1 / rank for rank in ranks],
        }[row["metric"]]
        assert row["value"] == pytest.approx(np.mean(values)) and row["users"] == len(inside) > 0
        told = {
            "task": "sequential",
            "backbone": "sasrec",
            "method": "X",
            "dataset": "small",
            "split": "test",
        }
        assert told.items() <= row.items() and row["seed"] == 3
        assert row["protocol"] == "full catalogue, 24 items, items seen stay in"
        place = {name: row[name] for name in ("scenario", "metric", "method")}
        own = [user for user in results.per_user if place.items() <= user.items()]
        assert [user["user"] for user in own] == [task.test[n].user for n in inside]
        assert [user["value"] for user in own] == pytest.approx(values)
    train = task.splits.topk.train.user_N.tolist()
    assert all(user["num_interactions"] == train.count(user["user"]) for user in results.per_user)
    json.dumps(results.rows + results.per_user)


def test_the_backbone_is_ranked_on_the_same_questions(run: Run[LaserConfig]) -> None:
    task = load_task(run)
    torch.manual_seed(0)
    sizes = {"num_users": NUM_USERS, "num_items": NUM_ITEMS}
    backbone = mf.MF(mf.Settings(embedding=4), sizes).eval()
    with torch.no_grad():
        scores_UI = backbone.users.weight @ backbone.items.weight.T
    for mask in (False, True):
        got_N = backbone_ranks(backbone, task, mask)
        for example, rank in zip(task.test, got_N.tolist(), strict=True):
            seen = set(example.history.tolist()) if mask else set()
            assert rank == 1 + rank_by_hand(scores_UI[example.user].tolist(), example.target, seen)


def test_the_exported_index_ranks_as_the_kernel_does(run: Run[LaserConfig]) -> None:
    """For normalised queries; row n of index and matrix is row n of the keys."""
    folder, (users_NH, items_IH) = run.path("export/laser"), vectors(run)
    manifest = read_manifest(folder, verify=True)
    assert (manifest["method"], manifest["metric"]) == ("Laser", "cosine")
    assert set(manifest["files"]) == {"items.faiss", "items.parquet", "vectors.safetensors"}
    assert torch.equal(read_vectors(folder), items_IH)
    index = faiss.read_index(str(folder / "items.faiss"))
    assert (index.ntotal, index.d) == (NUM_ITEMS, H) and index.metric_type == faiss.METRIC_INNER_PRODUCT
    cosines_NK, places_NK = index.search(normalize(users_NH, dim=1).numpy(), 10)
    found = full_rank(users_NH, items_IH, 10, cosine=True)
    np.testing.assert_allclose(cosines_NK, found.top_scores_NK, atol=1e-5)
    same = np.where(places_NK == 4, 3, places_NK), np.where(found.top_items_NK == 4, 3, found.top_items_NK)
    assert np.array_equal(*same), "two items with one vector may stand in either order"
    keys = pq.read_table(folder / "items.parquet")
    assert keys.column_names == ["item", "item_key", "title"]
    assert keys.equals(load_task(run).tables.items.select(keys.column_names))
    assert keys["item"].to_pylist() == list(range(NUM_ITEMS)) and keys["title"][7].as_py() == "Thing 7"


def test_export_is_done_again_over_an_older_one(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    run_export(run)
    write_vectors(run.path("tune/laser_2/model/items"), torch.ones(NUM_ITEMS, H))
    run_export(run)
    assert torch.equal(read_vectors(run.path("export/laser")), torch.ones(NUM_ITEMS, H))
    assert read_manifest(run.path("export/laser"), verify=True)["method"] == "Laser"


THREADS = """
import torch
from recloom.kernels.full_rank import full_rank
torch.set_num_threads(1)
torch.get_num_threads()  # as any work would, it makes torch start its threads
full_rank(torch.randn(5, 8), torch.randn(20, 8), 3)
print(torch.get_num_threads())
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has one thread")
def test_a_validation_leaves_the_rank_its_threads() -> None:
    """In a fresh process: the steps behind it are rounded as they are after a resume, and as fast."""
    told = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "1"
