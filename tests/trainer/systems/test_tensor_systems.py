"""Tensor parallelism of what the systems put around a language model: it stays whole and is trained right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from ranks import run_ranks

SCRIPT = Path(__file__).parent / "tensor_systems_ranks.py"
ESSENTIAL = ["laser:3", "blanks:3", "projected:3", "blanks_lora:2", "lora:3"]
OTHERS = ["laser:2", "blanks:1", "projected:1", "blanks_lora:3", "lora:2"]


def test_equals_plain_torch() -> None:
    run_ranks(SCRIPT, 2, "2", *ESSENTIAL)


@pytest.mark.slow
@pytest.mark.parametrize("cases", [ESSENTIAL, OTHERS])
def test_with_data_parallel_ranks(cases: list[str]) -> None:
    run_ranks(SCRIPT, 4, "2", *cases)
