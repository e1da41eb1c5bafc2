"""What the systems train around or inside of a language model goes on with other ranks; a frozen one is in no
checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from ranks import run_ranks

SCRIPT = Path(__file__).parent / "elastic_systems_ranks.py"
pytestmark = pytest.mark.timeout(1800)
Part = tuple[int, int, int]  # ranks, tensor, the step at which they save and leave; 3 is the end
DATA: list[Part] = [(2, 1, 2), (1, 1, 3)]
DATA_AND_BACK: list[Part] = [(2, 1, 1), (1, 1, 2), (2, 1, 3)]
TENSOR: list[Part] = [(1, 1, 1), (2, 2, 2), (1, 1, 3)]


def check(chain: list[Part], cases: list[str], out: Path) -> None:
    for world_size, tensor, until in chain:
        run_ranks(SCRIPT, world_size, str(out), str(tensor), str(until), *cases, timeout=600)


def test_data_parallel_ranks(tmp_path: Path) -> None:
    check(DATA, ["projected:3", "laser:2"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases", [["laser:3", "lora:3", "blanks_lora:3"], ["projected:1", "blanks:3", "lora:2"]]
)
def test_more_systems(cases: list[str], tmp_path: Path) -> None:
    check(DATA_AND_BACK, cases, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases", [["projected:3", "lora:3", "blanks_lora:2"], ["laser:3", "laser:2", "blanks:3", "blanks_lora:3"]]
)
def test_tensor_parallel_ranks(cases: list[str], tmp_path: Path) -> None:
    check(TENSOR, cases, tmp_path)
