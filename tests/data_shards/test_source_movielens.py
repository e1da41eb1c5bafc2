"""MovieLens by both ways, against the published counts and against each other."""

import json
import shutil
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
from pydantic import ValidationError

from recloom.data_shards.artifacts import cache_dir
from recloom.data_shards.cards import dataset_card, format_card
from recloom.data_shards.errors import UserError
from recloom.data_shards.sources import movielens
from recloom.data_shards.sources.movielens import Settings, load
from recloom.data_shards.sources.registry import source_module, source_names
from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.tables import Tables


@pytest.fixture(scope="module")
def from_wheel() -> Tables:
    try:
        return load(Settings(), cache_dir())
    except UserError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(f"needs a package index: {error}")


@pytest.fixture(scope="module")
def from_grouplens(shared_data: Path) -> Tables:
    return load(Settings(path=str(shared_data / "ml-100k")), Path("unused"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """pip sees only the wheels of the returned folder."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_wheel_has_the_published_counts(from_wheel: Tables) -> None:
    assert (from_wheel.num_users, from_wheel.num_items) == (943, 1682)
    assert from_wheel.interactions.num_rows == 100_000
    card = format_card(dataset_card(from_wheel, leave_one_out(from_wheel, 4.0)))
    assert "Agrees with Llama4Rec, Table 1." in card


def test_wheel_items_and_users(from_wheel: Tables) -> None:
    items = {row["item_key"]: row for row in from_wheel.items.to_pylist()}
    assert items["1"] == {
        "item": 0,
        "item_key": "1",
        "title": "Toy Story (1995)",
        "genres": "Animation|Children's|Comedy",
        "year": "1995",
    }
    assert (items["267"]["title"], items["267"]["year"]) == ("unknown", "")
    assert items["1412"]["year"] == "1995", "the year stands before a second parenthesis"
    assert items["1633"]["title"] == "Á köldum klaka (Cold Fever) (1994)"
    user = from_wheel.users.to_pylist()[0]
    assert user == {
        "user": 0,
        "user_key": "1",
        "age": "24",
        "gender": "M",
        "occupation": "technician",
        "zip": "85711",
    }


def rating_multisets(tables: Tables) -> dict[str, list[tuple[str, float, int]]]:
    """Per user key, the sorted (item key, rating, timestamp)."""
    users = tables.users["user_key"].to_pylist()
    items = tables.items["item_key"].to_pylist()
    found = defaultdict(list)
    columns = (tables.interactions[name].to_pylist() for name in ("user", "item", "rating", "timestamp"))
    for user, item, rating, time in zip(*columns, strict=True):
        found[users[user]].append((items[item], rating, time))
    return {user: sorted(rows) for user, rows in found.items()}


def test_both_ways_give_the_same_tables(from_wheel: Tables, from_grouplens: Tables) -> None:
    assert rating_multisets(from_wheel) == rating_multisets(from_grouplens)
    assert from_wheel == from_grouplens


def test_grouplens_ratings_are_the_files(from_grouplens: Tables, shared_data: Path) -> None:
    """Against a plain reading of u.data."""
    found = defaultdict(list)
    for line in (shared_data / "ml-100k" / "u.data").read_text().splitlines():
        user, item, rating, time = line.split("\t")
        found[user].append((item, float(rating), int(time)))
    assert rating_multisets(from_grouplens) == {user: sorted(rows) for user, rows in found.items()}


def test_ml_1m_has_the_papers_counts(shared_data: Path) -> None:
    tables = load(Settings(variant="1m", path=str(shared_data / "ml-1m")), Path("unused"))
    assert (tables.name, tables.num_users, tables.num_items) == ("ML-1M", 6040, 3706)
    assert tables.interactions.num_rows == 1_000_209
    assert tables.users.to_pylist()[0] == {
        "user": 0,
        "user_key": "1",
        "age": "under 18",
        "gender": "F",
        "occupation": "K-12 student",
        "zip": "48067",
    }
    assert "Misérables, Les (1995)" in tables.titles
    card = format_card(dataset_card(tables, leave_one_out(tables, 4.0)))
    assert "Agrees with Llama4Rec, Table 1." in card


def test_damaged_cache_is_downloaded_again(from_wheel: Tables, tmp_path: Path) -> None:
    shutil.copytree(cache_dir() / "ml-100k", tmp_path / "ml-100k")
    path = tmp_path / "ml-100k" / "ml-100k.inter"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    assert load(Settings(), tmp_path) == from_wheel
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ml-100k"]
    manifest = json.loads((tmp_path / "ml-100k" / "manifest.json").read_text())
    assert manifest["wheel_sha256"] == movielens.WHEEL_SHA256


def test_whole_cache_needs_no_network(from_wheel: Tables, offline: Path) -> None:
    assert load(Settings(), cache_dir()) == from_wheel


def test_failed_download_names_the_remedy(offline: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"pip could not download recbole==1.2.1 \(ERROR.*data\.path"
    ) as caught:
        load(Settings(), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_other_wheel_is_refused(offline: Path, tmp_path: Path) -> None:
    info = "recbole-1.2.1.dist-info"
    with zipfile.ZipFile(offline / "recbole-1.2.1-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    with pytest.raises(UserError, match=f"expected {movielens.WHEEL_SHA256}"):
        load(Settings(), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_1m_without_path_names_it() -> None:
    with pytest.raises(ValidationError, match="path is not set"):
        Settings(variant="1m")


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    settings = Settings(path=str(tmp_path))
    with pytest.raises(UserError, match="u.item: no such file"):
        load(settings, tmp_path)
    flags = "|".join(["0"] * 18 + ["1"])
    (tmp_path / "u.item").write_text(f"1|Toy Story (1995)|01-Jan-1995||url|{flags}\n")
    (tmp_path / "u.user").write_text("1|24|M|technician|85711\n")
    (tmp_path / "u.data").write_text("1\t1\tfive\t881250949\n")
    with pytest.raises(UserError, match="not in the format of ML-100K .*five"):
        load(settings, tmp_path)
    (tmp_path / "u.data").write_text("1\t1\t5\t881250949\n")
    tables = load(settings, tmp_path)
    assert tables.items.to_pylist()[0]["genres"] == "Western"


def test_settings_refuse_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="kind"):
        Settings.model_validate({"kind": "1m"})


def test_registry_finds_sources_and_the_nearest_name() -> None:
    assert {"movielens", "table"} <= set(source_names())
    assert "registry" not in source_names()
    assert source_module("movielens").load is load
    with pytest.raises(UserError, match="'movielen', no such source, did you mean 'movielens'") as caught:
        source_module("movielen")
    assert "table" in str(caught.value)
