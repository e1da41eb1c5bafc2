"""From a split to training data and queries; the test item is in neither."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from recloom.data_shards.errors import UserError
from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.data import RatingData, TopKData, leave_one_out_queries, pad_histories


@pytest.fixture(scope="module")
def tables() -> Tables:
    """User 0 has items 3 1 0 2 4 in time order, user 1 has 2 4 (too few), user 2 has 1 0 3."""
    user, item = [0] * 5 + [1] * 2 + [2] * 3, [3, 1, 0, 2, 4, 2, 4, 1, 0, 3]
    interactions = pa.table(
        {
            "user": pa.array(user, pa.int32()),
            "item": pa.array(item, pa.int32()),
            "rating": pa.array([5, 4, 5, 4, 5, 4, 5, 4, 5, 4], pa.float32()),
            "timestamp": pa.array(range(10), pa.int64()),
        }
    )
    names = [f"title {n}" for n in range(6)]
    items = pa.table({"item": pa.array(range(6), pa.int32()), "item_key": names, "title": names})
    users = pa.table(
        {"user": pa.array(range(3), pa.int32()), "user_key": ["a", "b", "c"], "job": ["x", "x", "y"]}
    )
    return Tables("tiny", interactions, items, users)


def test_topk_data_holds_training_items_only(tables: Tables) -> None:
    split = leave_one_out(tables, 4.0).topk
    data = TopKData.from_split(split, tables.num_users, tables.num_items)
    assert [items.tolist() for items in data.sequences] == [[3, 1, 0], [2, 4], [1]]
    assert data.valid_items.tolist() == [2, -1, 0]
    assert data.seen is data.sequences and data.tables is None
    assert TopKData.from_split(split, 3, 6, tables).known_tables("any") is tables
    with pytest.raises(UserError, match="model = 'any': it reads titles or keys"):
        data.known_tables("any")


def test_queries_show_all_that_came_before(tables: Tables) -> None:
    split = leave_one_out(tables, 4.0).topk
    valid = leave_one_out_queries(split, tables.num_users, "valid")
    assert (valid.users_B.tolist(), valid.targets_B.tolist()) == ([0, 2], [2, 0])
    assert [items.tolist() for items in valid.histories] == [[3, 1, 0], [1]]
    test = leave_one_out_queries(split, tables.num_users, "test")
    assert (test.users_B.tolist(), test.targets_B.tolist()) == ([0, 2], [4, 3])
    assert [items.tolist() for items in test.histories] == [[3, 1, 0, 2], [1, 0]]
    assert [items.tolist() for items in test.seen] == [[3, 1, 0, 2], [1, 0]]


def test_rating_range_is_of_the_training_part(tables: Tables) -> None:
    split = leave_one_out(tables, None).rating
    data = RatingData.from_split(tables, split)
    assert data.rating_range == (4.0, 5.0)
    assert len(data.train) == 6 and len(data.valid) == 2
    nothing = replace(split, train=split.train.select(np.zeros(6, dtype=bool)))
    with pytest.raises(UserError, match="needs a rating"):
        RatingData.from_split(tables, nothing)


def test_padding_is_on_the_left_and_cuts_the_oldest() -> None:
    histories = [np.array([1, 2, 3], np.int32), np.array([], np.int32), np.array([4])]
    assert pad_histories(histories, 2, 9).tolist() == [[2, 3], [9, 9], [9, 4]]
    assert pad_histories(histories, 0, 9).shape == (3, 0)


def test_inconsistent_data_is_refused(topk: TopKData) -> None:
    with pytest.raises(ValueError, match="one entry a user"):
        replace(topk, valid_items=topk.valid_items[:-1])
    with pytest.raises(ValueError, match=r"\(P, 3\)"):
        replace(topk, extra_pairs=np.zeros((2, 2)))
    with pytest.raises(UserError, match="no training interactions"):
        replace(topk, sequences=[np.empty(0, np.int32)] * topk.num_users)
