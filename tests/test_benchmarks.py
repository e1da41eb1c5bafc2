"""What the benchmarks compute by themselves, beside the times."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.data_shards.errors import UserError

HERE = Path(__file__).resolve().parent.parent / "benchmarks"
CONFIGS = HERE.parent / "configs"
PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def bulk() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        return importlib.import_module("bulk")


@settings(deadline=None)
@given(prompts=PROMPTS)
def test_least_tokens_are_the_distinct_beginnings(bulk: ModuleType, prompts: list[list[int]]) -> None:
    beginnings = {tuple(prompt[:n]) for prompt in prompts for n in range(1, len(prompt) + 1)}
    assert bulk.tree_tokens(prompts) == len(beginnings)


def test_bulk_takes_the_data_and_prompts_of_a_config(bulk: ModuleType) -> None:
    assert bulk.read_settings(None, []).prompts.history_items == 20
    assert bulk.read_settings(None, [("prompts.history_items", "7")]).prompts.history_items == 7
    books = CONFIGS / "llama4rec" / "corpus_bookcrossing.yaml"
    assert bulk.read_settings(books, []).data.source == "bookcrossing"
    with pytest.raises(UserError, match="system is laser: give a config of llama4rec"):
        bulk.read_settings(CONFIGS / "laser_quickstart.yaml", [])


def test_rows_are_added_below_one_head(bulk: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for value in (1, 2):
        bulk.append(path, [{"side": "a, b", "value": value}])
    with path.open(newline="") as stream:
        assert [row["value"] for row in csv.DictReader(stream)] == ["1", "2"]


def test_the_command_names_no_place_of_this_machine(
    bulk: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/some/where/bulk.py", "--model", "/some/where/llm", "--users", "3"])
    assert bulk.command_line() == "python benchmarks/bulk.py --model MODEL --users 3"


def test_growth_is_fitted_over_the_last_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a point measured twice the last counts; a preparation's small sizes are its process's start."""
    monkeypatch.syspath_prepend(str(HERE))
    growth = importlib.import_module("growth")
    sizes = (10**5, 10**6, 10**7, 10**8)
    taken = [("100,000", 9.0), *((f"{size:,}", 3e-7 * size) for size in sizes[1:])]
    rows = [{"part": "preparation", "case": "1,000,000 interactions", "shape": "", "CPU seconds": 99.0}]
    rows += [
        {"part": "preparation", "case": f"{size} interactions", "shape": "", "CPU seconds": seconds}
        for size, seconds in taken
    ]
    rows.append({"part": "growth", "case": "batch against items", "shape": "10:1.0ms 1000:10.0ms"})
    growth.append(tmp_path / "data.csv", rows, ["part", "case", "shape", "CPU seconds"])
    ranks = [{"size": size, "seconds a step": 8 / size} for size in (1, 2, 4)]
    growth.append(tmp_path / "growth.csv", ranks)
    monkeypatch.setattr(growth, "DATA_ROWS", tmp_path / "data.csv")
    monkeypatch.setattr(growth, "ROWS", tmp_path / "growth.csv")
    curves = growth.read_curves()
    found = {(curve.name, curve.axis): curve.exponent for curve in curves}
    assert found == pytest.approx(
        {("preparation, CPU", "interactions"): 1.0, ("batch", "items"): 0.5, ("tuning step", "ranks"): -1.0}
    )
    assert curves[1].points == {10.0: 0.001, 1000.0: 0.01}
    growth.draw(curves, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
