"""Vectors from files: matching by key, scores, means of histories, saving, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from recloom.data_shards.errors import UserError
from recloom.trainer.collaborative import vectors
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.evaluate import rank_topk
from recloom.trainer.collaborative.registry import load_backbone, save_backbone

PAD = 40
ITEMS_ID = np.random.default_rng(0).normal(size=(40, 3))
USERS_UD = np.random.default_rng(1).normal(size=(60, 3))
ITEM_KEYS, USER_KEYS = [f"item {item}" for item in range(40)], [f"user {user}" for user in range(60)]

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of any format with keys and vectors, in another order than the data's."""

    def made(name: str, keys: list[Any], rows: Any, kind: pa.DataType | None = None) -> str:
        listed = rows if isinstance(rows, list) else rows.tolist()
        table = pa.table({"key": keys[::-1], "vector": pa.array(listed[::-1], kind)})
        path = tmp_path / name
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        else:
            feather.write_feather(table, path)
        return str(path)

    return made


def test_scores_are_dot_products_of_the_files_vectors(topk: TopKData, write: Write) -> None:
    """Rows in any order, and of keys that the data lack."""
    items = write("items.parquet", ["other", *ITEM_KEYS], np.concatenate([np.ones((1, 3)), ITEMS_ID]))
    users = write("users.feather", USER_KEYS, USERS_UD)
    settings = vectors.Settings(items=items, users=users)
    backbone = vectors.Vectors.build(topk, settings)
    users_B = torch.tensor([5, 0, 59])
    scores_BI = backbone.score(users_B, torch.empty(3, 0, dtype=torch.long))
    np.testing.assert_allclose(scores_BI.tolist(), USERS_UD[users_B] @ ITEMS_ID.T, atol=1e-5)
    assert backbone.history_length == 0 and vectors.input_files(settings) == [Path(items), Path(users)]
    assert not list(backbone.parameters())


def test_without_user_vectors_a_user_is_the_mean_of_the_latest_items(topk: TopKData, write: Write) -> None:
    settings = vectors.Settings(items=write("items.arrow", ITEM_KEYS, ITEMS_ID), max_length=3)
    backbone = vectors.Vectors.build(topk, settings)
    histories = [np.array([8]), np.array([1, 2, 3, 4]), np.array([], dtype=np.int64), np.array([7, 7, 9])]
    padded_BL = torch.tensor([[PAD, PAD, PAD, 8], [1, 2, 3, 4], [PAD] * 4, [PAD, 7, 7, 9]])
    got_BD = backbone.user_vectors(torch.arange(4), padded_BL)
    want_BD = [ITEMS_ID[items[-3:]].mean(0) if len(items) else np.zeros(3) for items in histories]
    np.testing.assert_allclose(got_BD.tolist(), want_BD, atol=1e-6)
    ranked_Bk, _ = rank_topk(backbone, np.arange(4), histories, histories, k=5)
    for row, items in enumerate(histories):
        scores_I = ITEMS_ID @ want_BD[row]
        scores_I[items] = -np.inf
        assert ranked_Bk[row].tolist() == np.argsort(-scores_I, kind="stable")[:5].tolist()


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 3)]
)
def test_lists_of_any_kind_and_keys_of_numbers(topk: TopKData, write: Write, kind: pa.DataType) -> None:
    keys = pa.array([str(item) for item in range(40)])
    tables = topk.known_tables("test")
    numbered = replace(tables, items=tables.items.set_column(1, "item_key", keys))
    file = write("items.parquet", list(range(40)), ITEMS_ID.astype(np.float32), kind)
    backbone = vectors.Vectors.build(replace(topk, tables=numbered), vectors.Settings(items=file))
    np.testing.assert_allclose(backbone.item_vectors().tolist(), ITEMS_ID, atol=1e-6)


@pytest.mark.parametrize("with_users", [False, True])
def test_saved_vectors_need_no_file(topk: TopKData, write: Write, tmp_path: Path, with_users: bool) -> None:
    items, users = write("i.parquet", ITEM_KEYS, ITEMS_ID), write("u.parquet", USER_KEYS, USERS_UD)
    settings = vectors.Settings(items=items, users=users if with_users else None)
    backbone = vectors.Vectors.build(topk, settings)
    save_backbone(backbone, settings, tmp_path / "saved")
    Path(items).unlink()
    Path(users).unlink()
    loaded = load_backbone(tmp_path / "saved")
    query = torch.arange(60), torch.randint(40, (60, 50))
    assert torch.equal(loaded.score(*query), backbone.score(*query))


def test_missing_items_and_users(topk: TopKData, write: Write) -> None:
    files = {
        "items": write("items.parquet", ITEM_KEYS[2:], ITEMS_ID[2:]),
        "users": write("users.parquet", USER_KEYS[:-1], USERS_UD[:-1]),
    }
    text = "items = .*items.parquet': 2 of 40 items have no vector, first 'item 0': add them or set missing"
    with pytest.raises(UserError, match=text):
        vectors.Vectors.build(topk, vectors.Settings(**files))
    backbone = vectors.Vectors.build(topk, vectors.Settings(**files, missing="zero"))
    np.testing.assert_allclose(backbone.item_vectors()[2:].tolist(), ITEMS_ID[2:], atol=1e-6)
    np.testing.assert_allclose(backbone.users_UD[:-1].tolist(), USERS_UD[:-1], atol=1e-6)
    assert not backbone.item_vectors()[:2].any() and not backbone.users_UD[-1].any()
    files["items"] = write("all.parquet", ITEM_KEYS, ITEMS_ID)
    with pytest.raises(UserError, match="users = .* 1 of 60 users have no vector, first 'user 59'"):
        vectors.Vectors.build(topk, vectors.Settings(**files))


@pytest.mark.parametrize("missing", ["error", "zero"])
def test_a_file_of_other_data_is_refused(topk: TopKData, write: Write, missing: str) -> None:
    file = write("items.parquet", [f"B00{item}" for item in range(40)], ITEMS_ID)
    with pytest.raises(UserError, match="40 of 40 items have no vector.* use the ids of the data source"):
        vectors.Vectors.build(topk, vectors.Settings(items=file, missing=missing))


def test_widths_must_agree(topk: TopKData, write: Write) -> None:
    items, users = write("i.parquet", ITEM_KEYS, ITEMS_ID), write("u.parquet", USER_KEYS, USERS_UD[:, :2])
    with pytest.raises(UserError, match="users = .* are 2 wide, those of the items 3"):
        vectors.Vectors.build(topk, vectors.Settings(items=items, users=users))
    empty = write("empty.parquet", ["item 0"], [[]], pa.list_(pa.float32()))
    with pytest.raises(UserError, match="the vectors have lengths 0: give all rows the same, at least 1"):
        vectors.Vectors.build(topk, vectors.Settings(items=empty))


@pytest.mark.parametrize(
    ("keys", "rows", "message"),
    [
        (["a", "b", "a"], [[1.0]] * 3, "1 keys occur more than once, first 'a'"),
        (["a", None], [[1.0]] * 2, "1 rows have no key"),
        ([["a"]], [[1.0]], "key is list<.*>, it must be text"),
        (["a", "b"], [[1.0, 2.0], [3.0]], "the vectors have lengths 1, 2"),
        (["a", "b"], [[1.0], None], "the vectors have lengths none, 1"),
        (["a"], [[]], "vector is list<.*null>, it must be lists of numbers"),
        (["a"], [["x"]], "vector is list<.*string>, it must be lists of numbers"),
        (["a"], [1.0], "vector is double, it must be lists of numbers"),
        (["a"], [[1.0, float("nan")]], "a vector holds what is no finite number"),
        (["a"], [[1.0, None]], "a vector holds what is no finite number"),
        (["a"], [[1, None]], "a vector holds what is no finite number"),
        (["a"], [[1e300]], "a vector holds what is no finite number"),
        ([], [], "the file has no rows"),
    ],
)
def test_bad_contents(topk: TopKData, write: Write, keys: list[Any], rows: list[Any], message: str) -> None:
    file = write("items.parquet", keys, rows)
    with pytest.raises(UserError, match=f"items = '.*items.parquet': {message}"):
        vectors.Vectors.build(topk, vectors.Settings(items=file))


def test_bad_files(topk: TopKData, tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    (tmp_path / "broken.arrow").write_bytes(b"no arrow")
    pq.write_table(pa.table({"key": ["a"], "vec": [[1.0]]}), tmp_path / "named.parquet")
    for name, message in (
        ("items.csv", "the suffix must be one of .parquet, .feather, .arrow"),
        ("none.parquet", "no such file"),
        ("broken.parquet", "it can't be read"),
        ("broken.arrow", "it can't be read"),
        ("named.parquet", "it needs one column vector, the file has key, vec"),
    ):
        with pytest.raises(UserError, match=message):
            vectors.Vectors.build(topk, vectors.Settings(items=str(tmp_path / name)))
    with pytest.raises(UserError, match="model = 'vectors': it reads titles or keys"):
        vectors.Vectors.build(replace(topk, tables=None), vectors.Settings(items="items.parquet"))
    with pytest.raises(ValidationError, match="items"):
        vectors.Settings()


def test_a_relative_path_is_of_the_working_folder(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(write("items.parquet", ITEM_KEYS, ITEMS_ID))
    monkeypatch.chdir(file.parent)
    (found,) = vectors.input_files(vectors.Settings(items="items.parquet"))
    assert found.resolve() == file.resolve()
    (home,) = vectors.input_files(vectors.Settings(items="~/items.parquet"))
    assert home == Path.home() / "items.parquet"
