"""Small synthetic data with a structure that a backbone can learn, and MovieLens-100K."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from tiny_encoder import write_tiny_encoder

from recloom.data_shards.splits import Interactions
from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.base import BackboneSettings
from recloom.trainer.collaborative.data import RatingData, TopKData
from recloom.trainer.collaborative.features import encode_features
from recloom.trainer.collaborative.fields import FieldBackbone
from recloom.trainer.collaborative.registry import backbone_class, backbone_module

NUM_USERS, NUM_ITEMS, NUM_GROUPS = 60, 40, 4
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Make = Callable[..., BackboneSettings]


@pytest.fixture(scope="session")
def topk() -> TopKData:
    """Users of a group walk through the group's ten items in a cycle; the next one is validation."""
    rng = np.random.default_rng(0)
    sequences, valid = [], np.full(NUM_USERS, -1, dtype=np.int64)
    for user in range(NUM_USERS):
        start, length = int(rng.integers(10)), int(rng.integers(4, 8))
        walk = 10 * (user % NUM_GROUPS) + (start + np.arange(length + 1)) % 10
        sequences.append(walk[:-1].astype(np.int32))
        valid[user] = walk[-1] if user != 7 else -1
    return TopKData(NUM_USERS, NUM_ITEMS, sequences, valid, seen=sequences, tables=named(sequences))


def named(sequences: list[np.ndarray]) -> Tables:
    """Items that are called by their group and place in it, and users by their number."""
    user_N = np.repeat(np.arange(NUM_USERS), [len(items) for items in sequences]).astype(np.int32)
    rows = {"user": user_N, "item": np.concatenate(sequences), "timestamp": np.arange(len(user_N))}
    words = [(NUMBERS[item // 10], NUMBERS[item % 10]) for item in range(NUM_ITEMS)]
    items = {
        "item": pa.array(range(NUM_ITEMS), pa.int32()),
        "item_key": [f"item {item}" for item in range(NUM_ITEMS)],
        "title": [f"{group} {place}" for group, place in words],
        "group": [group for group, _ in words],
    }
    keys = [f"user {user}" for user in range(NUM_USERS)]
    users = {"user": pa.array(range(NUM_USERS), pa.int32()), "user_key": keys}
    tables = Tables("cycles", pa.table(rows), pa.table(items), pa.table(users))
    tables.validate()
    return tables


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random sentence encoder that knows a dozen words."""
    words = (":", ",", "title", "group", *NUMBERS)
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny_encoder"), words)


@pytest.fixture(scope="session")
def settings_of(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Settings of a backbone by name, with what it must be given: a sentence encoder, files of vectors."""
    file = tmp_path_factory.mktemp("vectors") / "items.parquet"
    vectors_ID = np.random.default_rng(0).normal(size=(NUM_ITEMS, 8))
    keys = [f"item {item}" for item in range(NUM_ITEMS)]
    pq.write_table(pa.table({"key": keys, "vector": vectors_ID.tolist()}), file)
    needed = {"morec": {"encoder": str(tiny_encoder)}, "vectors": {"items": str(file)}}

    def make(name: str, **fields: object) -> BackboneSettings:
        settings: BackboneSettings = backbone_module(name).Settings(**needed.get(name, {}), **fields)
        return settings

    return make


@pytest.fixture(scope="session")
def rating() -> RatingData:
    """Ratings that depend on the user's and the item's group, with attributes that tell the groups."""
    rng = np.random.default_rng(1)
    user_N = np.repeat(np.arange(NUM_USERS), 12).astype(np.int32)
    item_N = np.concatenate([rng.permutation(NUM_ITEMS)[:12] for _ in range(NUM_USERS)]).astype(np.int32)
    rating_N = np.where(user_N % NUM_GROUPS == item_N // 10, 5, 2).astype(np.float32)
    rows = Interactions(user_N, item_N, rating_N, np.arange(len(user_N)))
    last_N = np.arange(len(user_N)) % 12 == 11
    users = pa.table({"job": [f"job {user % NUM_GROUPS}" for user in range(NUM_USERS)]})
    genres = [f"genre {item // 10}|genre {item % 2 + 4}" for item in range(NUM_ITEMS)]
    return RatingData(
        NUM_USERS,
        NUM_ITEMS,
        encode_features(users),
        encode_features(pa.table({"genres": genres})),
        rows.select(~last_N),
        rows.select(last_N),
        (1.0, 5.0),
    )


@pytest.fixture
def rating_backbone(rating: RatingData) -> Callable[..., FieldBackbone]:
    """Builds a rating backbone by name, with settings: random weights, double precision, evaluation mode."""

    def build(name: str, **settings: object) -> FieldBackbone:
        module = backbone_module(name)
        torch.manual_seed(0)
        backbone = backbone_class(module).build(rating, module.Settings(**settings))
        for parameter in backbone.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        assert isinstance(backbone, FieldBackbone)
        return backbone.double().eval()

    return build


@pytest.fixture(scope="session")
def ml100k(shared_data: Path) -> Tables:
    from recloom.data_shards.sources import movielens

    return movielens.load(movielens.Settings(path=str(shared_data / "ml-100k")), shared_data)
