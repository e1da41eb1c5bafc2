"""User features and behaviour as text, and the three periods of a long sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.data_shards.errors import UserError
from recloom.data_shards.samples import Entity, sample_text
from recloom.data_shards.sources import movielens
from recloom.data_shards.textualize.behaviour import (
    DAY,
    LONG,
    MEDIUM,
    SHORT,
    Periods,
    Person,
    TaskOptions,
    attribute_text,
    period_of,
    person_values,
    sample_behaviour,
    take_counts,
)
from recloom.data_shards.textualize.template import one_line_titles

TITLES = ["Alien (1979)", "Heat (1995)", "Kolya (1996)"]
OPTIONS = TaskOptions(TITLES, "movie", verb="watched")
PERIODS = Periods()
EVEN = Periods(by="position", latest=False)


def test_features_are_entities() -> None:
    features = {"age": "24", "zip": None, "genres": "Action| Film-\nNoir |", "job": " "}
    segments = attribute_text(features)
    assert sample_text(segments) == "age: 24, genres: Action / Film- Noir"
    entities = [(s.text, s.kind, s.id) for s in segments if isinstance(s, Entity)]
    assert entities == [(text, "attribute", None) for text in ("24", "Action", "Film- Noir")]
    assert attribute_text({}) == () == attribute_text({"age": ""})


def test_what_a_person_did() -> None:
    values = person_values(Person(3, history=[2, 0, 1], ratings=[4.0, 2.5, 5.0]), OPTIONS)
    texts = {name: sample_text(value) for name, value in values.items()}
    assert texts == {
        "noun": "movie",
        "verb": "watched",
        "scale": "1 to 5",
        "features": "",
        "history": "Kolya (1996)\nAlien (1979)\nHeat (1995)",
        "history_text": "Kolya (1996) | Alien (1979) | Heat (1995)",
        "rated_history": "Kolya (1996) (rated 4)\nAlien (1979) (rated 2.5)\nHeat (1995) (rated 5)",
        "liked": "Kolya (1996)\nHeat (1995)",
        "disliked": "Alien (1979)",
    }
    unrated = person_values(Person(3, history=[2]), OPTIONS)
    assert unrated["rated_history"] == unrated["history"] != ()
    assert not (unrated["liked"] or unrated["disliked"])


def test_periods_by_time() -> None:
    days_T = np.array([0, 9, 10, 92, 93, 100])
    assert period_of(days_T * DAY, PERIODS).tolist() == [LONG, LONG, MEDIUM, MEDIUM, SHORT, SHORT]
    assert period_of((days_T * DAY)[:1], PERIODS).tolist() == [SHORT]


def test_periods_by_position_are_thirds() -> None:
    thirds = {num: period_of(np.arange(num), EVEN).tolist() for num in (1, 2, 4, 6)}
    assert thirds == {1: [2], 2: [1, 2], 4: [0, 1, 2, 2], 6: [0, 0, 1, 1, 2, 2]}


@pytest.mark.parametrize(
    ("sizes", "budget", "counts"),
    [
        ([99, 99, 99], 10, [1, 3, 6]),
        ([99, 99, 99], 20, [2, 6, 12]),
        ([99, 99, 99], 1, [0, 0, 1]),
        ([99, 99, 99], 0, [0, 0, 0]),
        ([99, 99, 2], 10, [1, 7, 2]),
        ([99, 1, 2], 10, [7, 1, 2]),
        ([0, 0, 99], 10, [0, 0, 10]),
        ([0, 9, 9], 10, [0, 3, 7]),
        ([1, 1, 1], 10, [1, 1, 1]),
    ],
)
def test_shares_of_the_budget(sizes: list[int], budget: int, counts: list[int]) -> None:
    assert take_counts(sizes, budget, PERIODS.shares) == counts


def test_the_shares_of_a_long_sequence() -> None:
    """Ten items a period: one of the long term, three of the medium, six of the short."""
    times_T = np.concatenate([np.arange(10), 400 + np.arange(10) * 5, 500 + np.arange(10) * 0.1]) * DAY
    rows = sample_behaviour(times_T, 30, 10, seed=0, user=5, periods=PERIODS)
    assert np.histogram(rows, [0, 10, 20, 30])[0].tolist() == [1, 3, 6]
    assert rows[-6:].tolist() == list(range(24, 30)), "the latest of the short term"


def test_a_short_sequence_is_shown_whole() -> None:
    times_T = np.arange(10) * 365 * DAY
    assert sample_behaviour(times_T, 8, 8, 0, 1, PERIODS).tolist() == list(range(8))
    assert sample_behaviour(times_T, 0, 8, 0, 1, PERIODS).tolist() == []


@settings(max_examples=200, derandomize=True)
@given(
    gaps=st.lists(st.integers(0, 200 * DAY), min_size=1, max_size=60),
    budget=st.integers(0, 30),
    seed=st.integers(0, 3),
    latest=st.booleans(),
    by=st.sampled_from(["time", "position"]),
    data=st.data(),
)
def test_samples_look_back_only(
    gaps: list[int], budget: int, seed: int, latest: bool, by: str, data: st.DataObject
) -> None:
    times_T = np.cumsum(gaps)
    target = data.draw(st.integers(0, len(times_T)))
    periods = Periods(by=by, latest=latest)  # type: ignore[arg-type]
    rows = sample_behaviour(times_T, target, budget, seed, 7, periods)
    assert len(rows) == min(budget, target) and (np.diff(rows) > 0).all()
    assert all(0 <= row < target for row in rows)
    changed_T = times_T.copy()
    changed_T[target:] += 10**9
    again = sample_behaviour(changed_T, target, budget, seed, 7, periods)
    assert rows.tolist() == again.tolist(), "the same draw, whatever comes at the target and after it"


def test_draws_differ_between_users_and_seeds() -> None:
    def draw(seed: int, user: int) -> list[int]:
        rows: list[int] = sample_behaviour(np.arange(300), 300, 20, seed, user, EVEN).tolist()
        return rows

    assert draw(0, 1) == draw(0, 1)
    assert len({tuple(draw(seed, user)) for seed in (0, 1) for user in range(10)}) == 20


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"short_days": 100.0}, "medium_days not the smaller"),
        ({"short_days": -1.0}, "must not be negative"),
        ({"shares": (0.1, 0.3, 0.5)}, "must sum to 1"),
        ({"shares": (-0.1, 0.5, 0.6)}, "none negative"),
    ],
)
def test_bad_periods_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Periods(**values)  # type: ignore[arg-type]


def test_movielens_users(shared_data: Path, tmp_path: Path) -> None:
    """Genuine users: their features, and a sample of a real history that spans months."""
    tables = movielens.load(movielens.Settings(path=str(shared_data / "ml-100k"), variant="100k"), tmp_path)
    options = TaskOptions(one_line_titles(tables.titles), "movie")
    row = tables.users.drop_columns(["user", "user_key"]).slice(0, 1).to_pylist()[0]
    assert sample_text(attribute_text(row)) == "age: 24, gender: M, occupation: technician, zip: 85711"
    rows = tables.interactions.filter(tables.interactions["user"].to_numpy() == 0)
    times_T, items_T = rows["timestamp"].to_numpy(), rows["item"].to_numpy()
    target = len(rows) - 1
    shown = sample_behaviour(times_T, target, 20, 0, 0, PERIODS)
    counts = np.bincount(period_of(times_T[:target], PERIODS)[shown], minlength=3)
    assert counts.sum() == 20 and counts[LONG] >= 2
    assert items_T[target] not in items_T[shown]
    history = person_values(Person(0, row, items_T[shown].tolist()), options)["history"]
    entities = [s for s in history if isinstance(s, Entity)]
    assert [s.text for s in entities] == [options.titles[s.id or 0] for s in entities] and len(entities) == 20
