"""Candidate lists and scenarios: their promises as properties, and on MovieLens-100K."""

import json
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recloom.data_shards.candidates import (
    NO_ITEM,
    Candidates,
    Part,
    all_parts,
    distinct_below,
    drawn_lists,
    load_candidates,
    ranking_ranks,
    sampled_candidates,
    score_ranks,
    stored_candidates,
)
from recloom.data_shards.errors import UserError
from recloom.data_shards.scenarios import (
    Domain,
    cross_domain,
    few_shot_users,
    item_groups,
    scenarios,
)
from recloom.data_shards.sources import movielens
from recloom.data_shards.splits import Interactions, Split, Splits, all_interactions, leave_one_out, merged
from recloom.data_shards.tables import Tables, assemble_tables
from recloom.trainer import metrics

# A row of the file: (user, item, rating). Repeated items and users with fewer than three rows occur.
Row = tuple[int, int, int]
RATED = st.tuples(st.integers(0, 11), st.integers(1, 5))
ROWS = st.lists(st.lists(RATED, min_size=1, max_size=7), min_size=1, max_size=8).map(
    lambda users: [(user, *rated) for user, history in enumerate(users) for rated in history]
)
COUNTS = st.integers(1, 12)
SEEDS = st.integers(0, 1000)
PARTS: tuple[Part, ...] = ("valid", "test")


def make_tables(rows: list[Row], name: str = "t") -> Tables:
    """Tables in file order, of the users and items that the rows name."""
    users, items, rating = zip(*rows, strict=True)
    keys = {"user_key": [f"u{user:04}" for user in users], "item_key": [f"i{item:02}" for item in items]}
    columns = {**keys, "timestamp": pa.array(range(len(rows)), pa.int64())}
    columns["rating"] = pa.array(rating, pa.float32())
    known = {part: sorted(set(keys[f"{part}_key"])) for part in ("user", "item")}
    item_table = pa.table({"item_key": known["item"], "title": known["item"]})
    return assemble_tables(name, pa.table(columns), item_table, pa.table({"user_key": known["user"]}))


def make_splits(rows: list[Row], positive: float | None = None) -> tuple[Tables, Splits]:
    if positive is not None and max(row[2] for row in rows) < positive:
        positive = None
    tables = make_tables(rows)
    return tables, leave_one_out(tables, positive)


def quiet_lists(splits: Splits, num_items: int, seed: int, count: int) -> dict[Part, Candidates]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return drawn_lists(splits, num_items, seed, count)


def touched(tables: Tables) -> dict[int, set[int]]:
    """Every item of a user, rated how it may be, straight from the table."""
    found: dict[int, set[int]] = defaultdict(set)
    rows = tables.interactions
    for user, item in zip(rows["user"].to_pylist(), rows["item"].to_pylist(), strict=True):
        found[user].add(item)
    return found


def as_dict(lists: Candidates) -> dict[int, tuple[int, list[int]]]:
    return {
        user: (place, items)
        for user, place, items in zip(
            lists.users_N.tolist(), lists.place_N.tolist(), lists.items_NC.tolist(), strict=True
        )
    }


def pairs(rows: Interactions) -> list[tuple[int, int]]:
    return list(zip(rows.user_N.tolist(), rows.item_N.tolist(), strict=True))


def users_of(rows: Interactions) -> set[int]:
    return set(rows.user_N.tolist())


@settings(max_examples=150, deadline=None)
@given(ROWS, st.sampled_from([None, 3.0]), COUNTS, SEEDS)
def test_lists_hold_the_target_and_untouched_items(
    rows: list[Row], positive: float | None, count: int, seed: int
) -> None:
    tables, splits = make_splits(rows, positive)
    own = touched(tables)
    for part, lists in quiet_lists(splits, tables.num_items, seed, count).items():
        targets = getattr(splits.topk, part)
        assert lists.items_NC.shape == (len(targets), count + 1)
        assert pairs(targets) == list(zip(lists.users_N.tolist(), lists.targets_N.tolist(), strict=True))
        for user, (place, items) in as_dict(lists).items():
            others = [item for item in items[:place] + items[place + 1 :] if item != NO_ITEM]
            free = set(range(tables.num_items)) - own[user]
            assert set(others) <= free and len(set(others)) == len(others) == min(count, len(free))
            assert items == sorted(items, key=lambda item: item == NO_ITEM), "NO_ITEM stands at the end"


@settings(max_examples=80, deadline=None)
@given(ROWS, COUNTS, SEEDS, st.sets(st.integers(0, 7)))
def test_a_list_does_not_depend_on_who_else_is_asked(
    rows: list[Row], count: int, seed: int, chosen: set[int]
) -> None:
    tables, splits = make_splits(rows)

    def only(part: Interactions) -> Interactions:
        return part.select(np.isin(part.user_N, list(chosen)))

    few = Splits(*(Split(*map(only, (s.train, s.valid, s.test))) for s in (splits.topk, splits.rating)))
    of_few = quiet_lists(few, tables.num_items, seed, count)
    for part, lists in quiet_lists(splits, tables.num_items, seed, count).items():
        everyone = as_dict(lists)
        assert as_dict(of_few[part]) == {user: everyone[user] for user in everyone if user in chosen}
        assert as_dict(lists.of(getattr(few.topk, part))) == as_dict(of_few[part])


def test_seeds_and_parts_draw_apart() -> None:
    rows = [(user, item % 60, 5) for user in range(20) for item in range(3 * user, 3 * user + 5)]
    _, splits = make_splits(rows)
    lists = [drawn_lists(splits, 1000, seed) for seed in (0, 0, 1)]
    assert as_dict(lists[0]["test"]) == as_dict(lists[1]["test"]) != as_dict(lists[2]["test"])
    negatives = [set(lists[0][part].items_NC.ravel().tolist()) for part in PARTS]
    assert len(negatives[0] & negatives[1]) < 200, "validation and test share their draws"


def test_every_free_item_and_every_place_is_equally_likely() -> None:
    """4,000 users, 12 items, 4 of them touched: each of 8 free items is drawn with chance 5/8."""
    rows = [(user, item, 5) for user in range(4000) for item in (1, 4, 5, 11)]
    tables, splits = make_splits([*rows, *((4000, item, 5) for item in range(12))])
    with pytest.warns(UserWarning, match="1 of 4001 test users have fewer than 5 .*fewest 0"):
        lists = sampled_candidates(splits, "test", tables.num_items, count=5, seed=3)
    items_NC, place_N = lists.items_NC[:-1], lists.place_N[:-1]
    free = [0, 2, 3, 6, 7, 8, 9, 10]
    deviation = np.sqrt(4000 * 5 / 8 * 3 / 8)
    assert np.abs(np.bincount(items_NC.ravel())[free] - 2500).max() < 4.5 * deviation
    places = np.bincount(place_N, minlength=6)
    assert np.abs(places - 4000 / 6).max() < 4.5 * np.sqrt(4000 / 6 * 5 / 6)
    for item in free:
        columns = np.nonzero(items_NC == item)[1]
        assert abs(columns.mean() - 2.5) < 4.5 * np.sqrt(35 / 12 / len(columns)), "place tells the item"
    together = ((items_NC == 0).any(1) & (items_NC == 10).any(1)).sum()
    assert abs(together - 4000 * 5 / 8 * 4 / 7) < 4.5 * np.sqrt(4000 * 0.357 * 0.643)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 12), SEEDS)
def test_distinct_below(bounds: list[int], n: int, seed: int) -> None:
    found_Nn = distinct_below(np.array(bounds), np.random.default_rng(seed).random((len(bounds), n)))
    for bound, found in zip(bounds, found_Nn.tolist(), strict=True):
        kept = [value for value in found if value != NO_ITEM]
        assert len(set(kept)) == len(kept) == min(bound, n) and set(kept) <= set(range(bound))


@pytest.mark.parametrize("bad", [{"count": 0}, {"seed": -1}])
def test_bad_draws_are_refused(bad: dict[str, int]) -> None:
    _, splits = make_splits([(0, item, 5) for item in range(4)])
    with pytest.raises(UserError, match="count must be at least 1, seed 0"):
        sampled_candidates(splits, "test", 12, **bad)
    with pytest.raises(ValueError, match="num_items = 3, but the splits name a larger item"):
        sampled_candidates(splits, "test", 3)


# -- files


@pytest.fixture
def drawn() -> tuple[Splits, Candidates]:
    _, splits = make_splits([(user, (user + item) % 12, 5) for user in range(6) for item in range(4)])
    return splits, sampled_candidates(splits, "test", 40, count=7, seed=5)


def test_saved_lists_come_back(tmp_path: Path, drawn: tuple[Splits, Candidates]) -> None:
    path = tmp_path / "lists" / "test.candidates"
    drawn[1].save(path)
    found = load_candidates(path)
    assert as_dict(found) == as_dict(drawn[1])
    assert (found.part, found.seed, found.num_items, found.count) == ("test", 5, 40, 7)
    first = path.read_bytes()
    found.save(path)
    assert path.read_bytes() == first, "one draw is one file, byte for byte"
    assert json.loads(first.partition(b"\n")[0])["users"] == 6
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file stays"


def test_no_rows_can_be_saved(tmp_path: Path) -> None:
    _, splits = make_splits([(0, 0, 5)])
    sampled_candidates(splits, "test", 12).save(tmp_path / "none")
    assert len(load_candidates(tmp_path / "none")) == 0


def test_every_damaged_byte_is_seen(tmp_path: Path, drawn: tuple[Splits, Candidates]) -> None:
    path = tmp_path / "test.candidates"
    drawn[1].save(path)
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(UserError, match="delete the file and draw the candidates again"):
            load_candidates(path)
    for cut in (0, 10, len(good) - 4):
        path.write_bytes(good[:cut])
        with pytest.raises(UserError, match=r"test\.candidates: "):
            load_candidates(path)
    path.unlink()
    with pytest.raises(UserError, match="no such file: draw the candidates first"):
        load_candidates(path)


def test_stored_lists_are_drawn_once(tmp_path: Path, drawn: tuple[Splits, Candidates]) -> None:
    splits, lists = drawn
    path = tmp_path / "test.candidates"
    assert as_dict(stored_candidates(path, splits, "test", 40, 7, 5)) == as_dict(lists)
    written = path.stat().st_mtime_ns
    assert as_dict(stored_candidates(path, splits, "test", 40, 7, 5)) == as_dict(lists)
    assert path.stat().st_mtime_ns == written
    for part, num_items, count, seed, field in (
        ("valid", 40, 7, 5, "part = test, asked for valid"),
        ("test", 41, 7, 5, "num_items = 40, asked for 41"),
        ("test", 40, 8, 5, "count = 7, asked for 8"),
        ("test", 40, 7, 6, "seed = 5, asked for 6"),
    ):
        with pytest.raises(UserError, match=f"drawn with {field}: ask as they were drawn"):
            stored_candidates(path, splits, part, num_items, count, seed)


def test_stored_lists_of_other_data_are_refused(tmp_path: Path, drawn: tuple[Splits, Candidates]) -> None:
    splits, lists = drawn
    path = tmp_path / "test.candidates"
    lists.save(path)
    test = splits.topk.test
    moved = Interactions(test.user_N, (test.item_N + 1) % 12, test.rating_N, test.order_N)
    more = Interactions(test.user_N + 1, test.item_N, test.rating_N, test.order_N)
    negative = (lists.items_NC[0, [lists.place_N[0] - 1]], test.user_N[:1])
    grown = merged(
        splits.topk.train, Interactions(negative[1], negative[0], test.rating_N[:1], np.array([99]))
    )
    for topk, message in (
        (Split(splits.topk.train, splits.topk.valid, moved), "target is not the test row's item"),
        (Split(splits.topk.train, splits.topk.valid, more), "a user of the test rows has no list"),
        (Split(grown, splits.topk.valid, test), "a list holds an item that its user touched"),
    ):
        with pytest.raises(UserError, match=f"{message}.*drawn from other data"):
            stored_candidates(path, Splits(topk, splits.rating), "test", 40, 7, 5)


# -- ranks


@settings(deadline=None)
@given(SEEDS, st.integers(2, 6))
def test_ties_and_nan_count_against_the_target(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [(user, int(item), 5) for user in range(6) for item in rng.permutation(12)[: 3 + user]]
    tables, splits = make_splits(rows)
    lists = quiet_lists(splits, tables.num_items, seed, 7)["test"]
    scores_NC = rng.integers(0, levels, lists.items_NC.shape).astype(np.float32)
    scores_NC[scores_NC == levels - 1] = np.nan
    want = []
    for scores, (place, items) in zip(scores_NC.tolist(), as_dict(lists).values(), strict=True):
        others = [
            s for at, (s, item) in enumerate(zip(scores, items, strict=True)) if at != place and item >= 0
        ]
        want.append(1 + sum(not score < scores[place] for score in others))
    ranks_N = score_ranks(scores_NC, lists)
    assert ranks_N.tolist() == want
    assert set(metrics.one_target_metrics(ranks_N, (1, 5))) == {"H@1", "H@5", "N@1", "N@5", "MRR"}
    with pytest.raises(ValueError, match="the candidates"):
        score_ranks(scores_NC[:, 1:], lists)


def test_ranks_of_rankings(drawn: tuple[Splits, Candidates]) -> None:
    lists = drawn[1]
    order_NC = np.argsort(np.random.default_rng(0).random(lists.items_NC.shape), axis=1)
    ranked_NC = np.take_along_axis(lists.items_NC, order_NC, axis=1)
    by_score = -np.argsort(order_NC, axis=1)
    assert ranking_ranks(ranked_NC, lists).tolist() == score_ranks(by_score, lists).tolist()
    one_answer = np.where(np.arange(6) % 2, lists.targets_N, NO_ITEM)[:, None]
    assert ranking_ranks(one_answer, lists).tolist() == [np.inf, 1, np.inf, 1, np.inf, 1]
    invalid_first = np.column_stack([np.full(6, NO_ITEM), ranked_NC])
    assert ranking_ranks(invalid_first, lists).tolist() == (ranking_ranks(ranked_NC, lists) + 1).tolist()
    assert np.isinf(ranking_ranks(np.empty((6, 0)), lists)).all()
    metrics.one_target_metrics(ranking_ranks(one_answer, lists), (1,))
    with pytest.raises(ValueError, match="5 rankings for 6 candidate lists"):
        ranking_ranks(ranked_NC[1:], lists)


# -- scenarios


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_groups_are_disjoint_of_the_right_size_and_ordered(rows: list[Row]) -> None:
    tables, splits = make_splits(rows)
    groups = item_groups(splits.topk.train, tables.num_items)
    count_I = np.bincount(splits.topk.train.item_N, minlength=tables.num_items)
    size = int(tables.num_items * 35 / 100 + 1e-9)
    assert not (groups["warm"] & groups["cold"]).any()
    assert groups["warm"].sum() == groups["cold"].sum() == size
    items = sorted(range(tables.num_items), key=lambda item: (-count_I[item], item))
    assert set(np.flatnonzero(groups["warm"])) == set(items[:size])
    assert set(np.flatnonzero(groups["cold"])) == set(items[len(items) - size :])


@settings(max_examples=100, deadline=None)
@given(ROWS, st.sampled_from([None, 3.0]), SEEDS)
def test_warm_and_cold_ask_their_items_and_learn_from_all(
    rows: list[Row], positive: float | None, seed: int
) -> None:
    tables, splits = make_splits(rows, positive)
    groups = item_groups(splits.topk.train, tables.num_items)
    for name in ("warm", "cold"):
        asked = [pair for pair in pairs(splits.topk.test) if groups[name][pair[1]]]
        if not asked or not len(splits.topk.train):
            with pytest.raises(UserError, match=f"'{name}_full' has no (test|training) rows"):
                scenarios(splits, tables.num_items, [f"{name}_full"])
            continue
        drawn = quiet_lists(splits, tables.num_items, seed, 3)
        scenario = scenarios(splits, tables.num_items, [name], seed, drawn)[name]
        assert pairs(scenario.splits.topk.test) == asked
        assert pairs(scenario.splits.topk.train) == pairs(splits.topk.train)
        assert pairs(scenario.splits.rating.valid) == pairs(splits.rating.valid)
        assert scenario.test is not None and scenario.test.targets_N.tolist() == [item for _, item in asked]
        overall = as_dict(drawn["test"])
        assert all(overall[user] == row for user, row in as_dict(scenario.test).items())


@settings(max_examples=100, deadline=None)
@given(ROWS, st.sampled_from([None, 3.0]), SEEDS, st.integers(0, 4))
def test_cold_users_leave_no_trace_in_training(
    rows: list[Row], positive: float | None, seed: int, truncated: int
) -> None:
    tables, splits = make_splits(rows, positive)
    counted = defaultdict(list)  # a user's rows that count for top-k, in time order
    for part in (splits.topk.train, splits.topk.valid, splits.topk.test):
        for user, item in pairs(part):
            counted[user].append(item)
    long = {user for user, items in counted.items() if len(items) >= 3}
    natural = {user for user in long if len(counted[user]) == 3}
    if truncated > len(long) or not (truncated or natural):
        with pytest.raises(UserError, match="truncated_cold_users"):
            scenarios(splits, tables.num_items, ["cold_users_full"], seed, None, truncated)
        return
    assume(users_of(splits.topk.train) - (natural if not truncated else long))
    drawn = quiet_lists(splits, tables.num_items, seed, 3)
    found = scenarios(splits, tables.num_items, ["cold_users"], seed, drawn, truncated)["cold_users"]
    cold = users_of(found.splits.topk.test)
    assert cold == natural if not truncated else (len(cold) == truncated and cold <= long)
    for split, full in ((found.splits.topk, splits.topk), (found.splits.rating, splits.rating)):
        assert not cold & (users_of(split.train) | users_of(split.valid))
        assert len(split.train) == sum(user not in cold for user, _ in pairs(full.train))
        assert users_of(split.test) <= cold
    want = [(user, item) for user in sorted(cold) for item in counted[user][-3:-1]]
    assert pairs(found.history) == want, "the two before the target, in time order"
    assert pairs(found.splits.topk.test) == [(user, counted[user][-1]) for user in sorted(cold)]
    assert found.test is not None and found.valid is not None
    assert len(found.valid) == len(found.splits.topk.valid)


def test_cold_users_where_none_has_three() -> None:
    tables, splits = make_splits([(user, item, 5) for user in range(3) for item in range(5)])
    with pytest.raises(UserError, match="no user has exactly three interactions: set truncated_cold_users"):
        scenarios(splits, tables.num_items, ["cold_users_full"])
    with pytest.raises(UserError, match=r"truncated_cold_users: 4 users asked for, must lie in 1\.\.3"):
        scenarios(splits, tables.num_items, ["cold_users_full"], truncated_cold_users=4)
    with pytest.raises(UserError, match="'cold_users_full' has no training rows"):
        scenarios(splits, tables.num_items, ["cold_users_full"], truncated_cold_users=3)
    found = scenarios(splits, tables.num_items, ["cold_users_full"], truncated_cold_users=2)
    assert [item for _, item in pairs(found["cold_users_full"].history)] == [2, 3, 2, 3]


@settings(max_examples=100, deadline=None)
@given(ROWS, st.sampled_from([None, 3.0]), SEEDS, st.integers(1, 5))
def test_few_shot_learns_from_exactly_k_users(
    rows: list[Row], positive: float | None, seed: int, k: int
) -> None:
    tables, splits = make_splits(rows, positive)
    can = users_of(splits.topk.valid) & users_of(splits.topk.train)
    name = f"few_shot_{k}"
    if k > len(can):
        with pytest.raises(UserError, match=rf"'{name}': {k} users asked for, must lie in 1\.\.{len(can)}"):
            scenarios(splits, tables.num_items, [name + "_full"], seed)
        return
    drawn = quiet_lists(splits, tables.num_items, seed, 3)
    found = scenarios(splits, tables.num_items, [name], seed, drawn)[name]
    learned = users_of(found.splits.topk.train)
    assert len(learned) == k and users_of(found.splits.topk.valid) == learned
    assert users_of(found.splits.rating.train) | users_of(found.splits.rating.valid) <= learned
    for part, full in zip(all_parts(found.splits)[:2], all_parts(splits)[:2], strict=True):
        assert pairs(part) == [pair for pair in pairs(full) if pair[0] in learned]
    assert pairs(found.splits.topk.test) == pairs(splits.topk.test)
    assert found.test is not None and as_dict(found.test) == as_dict(drawn["test"])
    asked = users_of(splits.topk.test)
    before = merged(splits.topk.train, splits.topk.valid)
    assert pairs(found.history) == [pair for pair in pairs(before) if pair[0] in asked]
    if k > 1:
        fewer = few_shot_users(splits, k - 1, seed)
        assert not (fewer & ~few_shot_users(splits, k, seed)).any(), "smaller K are subsets"


def test_overall_is_everything_and_names_are_checked() -> None:
    tables, splits = make_splits(
        [(user, (3 * user + item) % 12, 5) for user in range(6) for item in range(6)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = scenarios(splits, tables.num_items, ["overall", "overall_full", "few_shot_3_full"], seed=1)
    assert list(found) == ["overall", "overall_full", "few_shot_3_full"]
    for name, scenario in found.items():
        assert scenario.name == name and (scenario.test is None) == name.endswith("_full")
    for part, full in zip(all_parts(found["overall"].splits), all_parts(splits), strict=True):
        assert pairs(part) == pairs(full)
    for name, message in (
        ("cold_user", r"'cold_user', no such scenario, did you mean 'cold_users': choose from overall, warm"),
        ("few_shot_0", "'few_shot_0', no such scenario, did you mean 'few_shot_256'"),
        ("overal_full", "did you mean 'overall_full'"),
        ("xyz", "'xyz', no such scenario: choose from"),
        ("cross_domain", "needs two data sets: call cross_domain"),
    ):
        with pytest.raises(UserError, match=message):
            scenarios(splits, tables.num_items, [name])


def test_cross_domain_learns_here_and_asks_there() -> None:
    rows = [(user, (3 * user + item) % 12, 5) for user in range(6) for item in range(6)]
    source, target = (make_tables(rows[skip:], name) for skip, name in ((0, "books"), (2, "films")))
    domains = [Domain(tables, leave_one_out(tables, None)) for tables in (source, target)]
    lists = drawn_lists(domains[1].splits, target.num_items, seed=2, count=3)
    pair = cross_domain(*domains, seed=2, drawn=lists)
    topk, full = pair.scenario.splits.topk, domains[1].splits.topk
    assert pair.source is domains[0] and pair.target is domains[1]
    assert not any(map(len, (topk.train, topk.valid, *all_parts(pair.scenario.splits)[3:5])))
    assert pairs(topk.test) == pairs(full.test)
    assert pairs(pair.scenario.history) == pairs(merged(full.train, full.valid))
    assert pair.scenario.test is not None and as_dict(pair.scenario.test) == as_dict(lists["test"])
    renamed = Domain(make_tables(rows, "copies"), domains[0].splits)
    for other in (domains[0], renamed, Domain(make_tables(rows[2:], "books"), domains[1].splits)):
        with pytest.raises(UserError, match="the source is 'books' and the target .* must be two data sets"):
            cross_domain(domains[0], other)


# -- real data


@pytest.fixture(scope="module")
def ml_100k(shared_data: Path) -> Tables:
    return movielens.load(movielens.Settings(path=str(shared_data / "ml-100k")), Path("unused"))


@pytest.fixture(scope="module", params=[None, 4.0])
def ml_splits(request: pytest.FixtureRequest, ml_100k: Tables) -> Iterator[Splits]:
    yield leave_one_out(ml_100k, request.param)


def test_the_parts_of_both_tasks_are_all_interactions(ml_100k: Tables, ml_splits: Splits) -> None:
    """What the lists' exclusion rests on."""
    orders = set().union(*(part.order_N.tolist() for part in all_parts(ml_splits)))
    assert orders == set(range(len(all_interactions(ml_100k))))


def test_movielens_lists(ml_100k: Tables, ml_splits: Splits, tmp_path: Path) -> None:
    own = touched(ml_100k)
    for part in PARTS:
        lists = stored_candidates(tmp_path / part, ml_splits, part, ml_100k.num_items, 19, 7)
        assert len(lists) == len(getattr(ml_splits.topk, part)) > 930
        for user, (place, items) in as_dict(lists).items():
            assert len(set(items)) == 20 and own[user] & set(items) == {items[place]}


def test_movielens_popularity_by_group(ml_100k: Tables, ml_splits: Splits) -> None:
    """A popularity ranker, in the same lists: warm above overall above cold."""
    count_I = np.bincount(ml_splits.topk.train.item_N, minlength=ml_100k.num_items)
    names = ["overall", "warm", "cold", "few_shot_256", "few_shot_128"]
    found = scenarios(ml_splits, ml_100k.num_items, names, seed=7)
    hits: dict[str, float] = {}
    for name, scenario in found.items():
        assert scenario.test is not None
        ranks_N = score_ranks(count_I[scenario.test.items_NC], scenario.test)
        hits[name] = metrics.means(metrics.one_target_metrics(ranks_N, (1,)))["H@1"]
    assert hits["warm"] > hits["overall"] > hits["cold"]
    assert hits["few_shot_256"] == hits["few_shot_128"] == hits["overall"], "the same test for all"
    assert [len(users_of(found[name].splits.topk.train)) for name in names[3:]] == [256, 128]


def test_movielens_cold_users(ml_100k: Tables, ml_splits: Splits) -> None:
    found = scenarios(ml_splits, ml_100k.num_items, ["cold_users"], 7, None, 100)["cold_users"]
    cold = users_of(found.splits.topk.test)
    assert len(cold) == 100 and len(found.history) == 200
    assert not any(cold & users_of(part) for part in (found.splits.topk.train, found.splits.rating.train))
