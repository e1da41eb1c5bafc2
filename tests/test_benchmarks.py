"""What the benchmarks compute by themselves, beside the times."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent.parent / "benchmarks"
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
