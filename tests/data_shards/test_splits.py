"""Leave-one-out against a plain loop, and its promises as properties."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.data_shards.errors import UserError
from recloom.data_shards.splits import Interactions, Split, all_interactions, leave_one_out
from recloom.data_shards.tables import Tables, assemble_tables

# A row of the file: (user, item, rating, timestamp). Few times, so that ties are common.
Row = tuple[int, int, int, int]
ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(1, 5), st.integers(0, 3)),
    min_size=1,
    max_size=60,
)


def make_tables(rows: list[Row], ratings: bool = True) -> Tables:
    """Tables whose `review` is the row's number in the file."""
    users, items, rating, time = zip(*rows, strict=True)
    user_keys, item_keys = [f"u{user}" for user in users], [f"i{item}" for item in items]
    columns = {"user_key": user_keys, "item_key": item_keys, "timestamp": pa.array(time, pa.int64())}
    columns["review"] = [str(index) for index in range(len(rows))]
    if ratings:
        columns["rating"] = pa.array(rating, pa.float32())
    all_items = pa.table({"item_key": sorted(set(item_keys)), "title": sorted(set(item_keys))})
    return assemble_tables("t", pa.table(columns), all_items, pa.table({"user_key": sorted(set(user_keys))}))


def file_rows(tables: Tables, part: Interactions) -> list[int]:
    review = tables.interactions["review"].to_pylist()
    return [int(review[order]) for order in part.order_N]


def parts(split: Split) -> tuple[Interactions, Interactions, Interactions]:
    return split.train, split.valid, split.test


def oracle(rows: list[Row], positive: int | None) -> dict[str, tuple[set[int], set[int], set[int]]]:
    """The same rule as a loop over users: file row numbers of (train, valid, test) a task."""
    by_user = defaultdict(list)
    for index in sorted(range(len(rows)), key=lambda index: rows[index][3]):
        by_user[rows[index][0]].append(index)
    found: dict[str, tuple[set[int], set[int], set[int]]] = {}
    for task in ("topk", "rating"):
        train, valid, test = set(), set(), set()
        for history in by_user.values():
            counted = [i for i in history if task == "rating" or positive is None or rows[i][2] >= positive]
            if len(counted) >= 3:
                test.add(counted.pop())
                valid.add(counted.pop())
            train.update(counted)
        found[task] = (train, valid, test)
    held = set().union(*(found[task][part] for task in found for part in (1, 2)))
    return {task: (train - held, valid, test) for task, (train, valid, test) in found.items()}


@settings(max_examples=150, deadline=None)
@given(ROWS, st.sampled_from([None, 2, 4]))
def test_leave_one_out_holds_its_promises(rows: list[Row], positive: int | None) -> None:
    if positive is not None and max(row[2] for row in rows) < positive:
        positive = None
    tables = make_tables(rows)
    splits = leave_one_out(tables, positive)
    want = oracle(rows, positive)
    held, trained = set(), set()
    for task, split in (("topk", splits.topk), ("rating", splits.rating)):
        numbers = [file_rows(tables, part) for part in parts(split)]
        assert tuple(map(set, numbers)) == want[task]
        assert len(set().union(*numbers)) == sum(map(len, numbers)), "a row is in two parts of a task"
        trained |= set(numbers[0])
        held |= set(numbers[1]) | set(numbers[2])
        for part, index_N in zip(parts(split), numbers, strict=True):
            keys = [(rows[index][0], rows[index][3], index) for index in index_N]
            assert keys == sorted(keys), "not in order of user, time, file"
            assert [rows[index][2] for index in index_N] == part.rating_N.tolist()
        for held_out in (split.valid, split.test):
            assert len(set(held_out.user_N.tolist())) == len(held_out)
    assert not held & trained, "a validation or test row of one task trains a task"


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_training_validation_test_follow_in_time(rows: list[Row]) -> None:
    splits = leave_one_out(make_tables(rows), None)
    for split in (splits.topk, splits.rating):
        test = dict(zip(split.test.user_N.tolist(), split.test.order_N.tolist(), strict=True))
        for user, order in zip(split.valid.user_N.tolist(), split.valid.order_N.tolist(), strict=True):
            earlier = split.train.order_N[split.train.user_N == user]
            assert earlier.size and earlier.max() < order < test[user]


def test_ties_keep_file_order() -> None:
    rows = [(0, item, 5, 7) for item in (3, 1, 4, 0, 2)]
    split = leave_one_out(make_tables(rows), 4.0).topk
    assert split.train.item_N.tolist() == [3, 1, 4]
    assert (split.valid.item_N.tolist(), split.test.item_N.tolist()) == ([0], [2])


def test_no_leak_between_the_tasks() -> None:
    """Disliked items at the end: the last liked rows are top-k targets, the last rows rating targets."""
    rows = [(0, item, rating, item) for item, rating in enumerate([5, 5, 5, 5, 1, 1, 1])]
    splits = leave_one_out(make_tables(rows), 4.0)
    assert splits.topk.train.item_N.tolist() == [0, 1]
    assert (splits.topk.valid.item_N.tolist(), splits.topk.test.item_N.tolist()) == ([2], [3])
    assert splits.rating.train.item_N.tolist() == [0, 1, 4]
    assert (splits.rating.valid.item_N.tolist(), splits.rating.test.item_N.tolist()) == ([5], [6])


def test_sequences_are_one_a_user_in_time_order() -> None:
    tables = make_tables([(2, 1, 5, 2), (0, 3, 5, 1), (2, 0, 5, 1), (2, 2, 1, 3), (1, 0, 1, 0)])
    rows = all_interactions(tables)
    titles = [[tables.titles[item] for item in items] for items in rows.sequences(tables.num_users)]
    assert titles == [["i3"], ["i0"], ["i0", "i1", "i2"]]
    liked = rows.select(rows.rating_N >= 4).sequences(tables.num_users + 1)
    assert [len(items) for items in liked] == [1, 0, 2, 0]


def test_without_ratings_every_row_counts() -> None:
    rows = [(0, item, 1, item) for item in range(4)]
    tables = make_tables(rows, ratings=False)
    splits = leave_one_out(tables, None)
    assert splits.topk.test.item_N.tolist() == splits.rating.test.item_N.tolist() == [3]
    assert np.isnan(splits.rating.train.rating_N).all()
    with pytest.raises(UserError, match="positive_rating is 4, but t has no ratings"):
        leave_one_out(tables, 4.0)


def test_positive_rating_that_none_reaches() -> None:
    with pytest.raises(UserError, match="positive_rating is 7, but the highest rating of t is 5"):
        leave_one_out(make_tables([(0, 0, 5, 0)]), 7.0)
