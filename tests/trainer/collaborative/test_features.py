"""Attribute columns: bags, missing and rare values, bins, zip codes, columns that tell nothing."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.features import FeatureTable, encode_features


def decoded(features: FeatureTable, row: int) -> dict[str, dict[str, float]]:
    """Field -> value -> weight of one row, from the arrays alone."""
    found: dict[str, dict[str, float]] = {name: {} for name in features.fields}
    for slot, index in enumerate(features.index_ES[row]):
        if index:
            name, value = features.vocabulary[index]
            assert name == features.fields[features.field_S[slot]]
            found[name][value] = float(features.weight_ES[row, slot])
        else:
            assert features.weight_ES[row, slot] == 0
    return found


def test_bags_missing_and_rare() -> None:
    cells = ["a|b"] * 3 + ["a"] * 3 + [None, ""] + ["once|a", "twice", "twice"]
    features = encode_features(pa.table({"genres": cells}))
    assert decoded(features, 0) == {"genres": {"a": 0.5, "b": 0.5}}
    assert decoded(features, 3) == {"genres": {"a": 1.0}}
    assert decoded(features, 6) == decoded(features, 7) == {"genres": {"": 1.0}}
    assert decoded(features, 8) == {"genres": {"a": 0.5, "\0rare": 0.5}}
    assert decoded(features, 9) == {"genres": {"\0rare": 1.0}}
    np.testing.assert_allclose(features.weight_ES.sum(1), 1)


def test_columns_that_tell_nothing_are_skipped() -> None:
    table = pa.table(
        {
            "user_key": [str(n) for n in range(100)],
            "name": [f"name {n}" for n in range(100)],
            "constant": ["x"] * 100,
            "half": ["x", "y"] * 50,
        }
    )
    features = encode_features(table, skip=("user_key",))
    assert features.fields == ("half",)
    assert features.num_values == 3
    empty = encode_features(table.select(["name"]))
    assert empty.fields == () and empty.index_ES.shape == (100, 0) and empty.num_values == 1


def test_numbers_are_binned_and_zip_codes_cut() -> None:
    ages = [str(age) for age in range(100)] + [None]
    zips = [f"{n % 5}{n:04}" for n in range(101)]
    features = encode_features(pa.table({"age": ages, "zip_code": zips}))
    bins = [next(iter(decoded(features, row)["age"])) for row in range(101)]
    assert bins[100] == ""
    assert len(set(bins[:100])) == 10
    order = [int(name.removeprefix("bin ")) for name in bins[:100]]
    assert order == sorted(order) and np.bincount(order).tolist() == [10] * 10
    assert [next(iter(decoded(features, row)["zip_code"])) for row in range(5)] == list("01234")


def test_numbering_does_not_depend_on_row_order() -> None:
    cells = ["b", "a", "c|a", "b", "c", "a"] * 3
    forward = encode_features(pa.table({"x": cells}))
    backward = encode_features(pa.table({"x": cells[::-1]}))
    assert forward.vocabulary == backward.vocabulary
    np.testing.assert_array_equal(forward.index_ES, backward.index_ES[::-1])


def test_movielens_fields(ml100k: Tables) -> None:
    users = encode_features(ml100k.users, skip=("user", "user_key"))
    items = encode_features(ml100k.items, skip=("item", "item_key", "title"))
    assert users.fields == ("age", "gender", "occupation", "zip")
    assert set(items.fields) == {"genres", "year"}
    toy_story = decoded(items, ml100k.titles.index("Toy Story (1995)"))
    assert set(toy_story["genres"]) == {"Animation", "Children's", "Comedy"}
