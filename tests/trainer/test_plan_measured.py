"""The plan's memory, messages and disk against two CPU ranks that take two steps of the real loop."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from ranks import run_ranks

from recloom.trainer.planning.lines import checkpoint_bytes
from recloom.trainer.planning.memory import Setup, training_memory
from recloom.trainer.planning.shapes import ModelSize
from recloom.trainer.planning.speed import data_bytes, tensor_bytes

# No weight but those of norms is below the 1e5 elements that ZeRO-3 keeps whole.
SIZE = ModelSize(384, 1024, 4, 4, 4, 4000, 1024)
BUCKET = 2_000_000
RANKS, ROW, ANSWERS = 2, 512, 128
SCRIPT = Path(__file__).parent / "plan_ranks.py"


def case(
    stage: int, tensor: int = 1, dtype: str = "float32", rows: int = 1, checkpointing: bool = False
) -> dict[str, Any]:
    return {"stage": stage, "tensor": tensor, "dtype": dtype, "rows": rows, "checkpointing": checkpointing}


# One process tree an entry: the groups of tensor-parallel ranks are made once a process.
DATA = [case(3), case(2), case(1), case(0)]
DATA += [case(3, 1, "bfloat16", 2, True), case(2, 1, "bfloat16", 2)]
DATA += [case(1, 1, "bfloat16", 2, True), case(3, 1, "bfloat16")]
TENSOR = [case(0, 2), case(3, 2, "bfloat16", 2, True)]


def setup_of(case: dict[str, Any]) -> Setup:
    return Setup(
        model=SIZE,
        dtype=case["dtype"],
        zero_stage=case["stage"],
        ranks=RANKS,
        row_tokens=ROW,
        answer_tokens=ANSWERS,
        longest_prompt=256,
        checkpointing=case["checkpointing"],
        offload=False,
        tensor=case["tensor"],
        rows_per_step=case["rows"] * RANKS // case["tensor"],
        bucket=BUCKET,
    )


# How far ahead a rank has fetched weights when the other one waits differs from run to run.
ZERO_3_PEAK = 0.2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cases", [DATA, TENSOR], ids=["data", "tensor"])
def test_the_plan_is_within_a_tenth_of_two_ranks(tmp_path: Path, cases: list[dict[str, Any]]) -> None:
    config = LlamaConfig(
        vocab_size=SIZE.vocab,
        hidden_size=SIZE.hidden,
        intermediate_size=SIZE.intermediate,
        num_hidden_layers=SIZE.layers,
        num_attention_heads=SIZE.heads,
        num_key_value_heads=SIZE.kv_heads,
        max_position_embeddings=SIZE.positions,
    )
    # In a third format, so that loading copies: a file that is mapped would count as nothing.
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(tmp_path / "model")
    wanted = {
        "model": str(tmp_path / "model"),
        "bucket": BUCKET,
        "cases": cases,
        "out": str(tmp_path / "out.json"),
    }
    (tmp_path / "wanted.json").write_text(json.dumps(wanted))
    run_ranks(SCRIPT, RANKS, str(tmp_path / "wanted.json"), timeout=1700)
    rows = json.loads((tmp_path / "out.json").read_text())
    for row in rows:
        row["planned"] = planned(row["case"])
        row["measured"] = {"peak": row["peak"], "disk": row["disk"], "moved": sent(row)}
        print(json.dumps(row))  # `pytest -s` shows what docs/results/planner.md holds
    for row in rows:
        for name, found in row["measured"].items():
            near = ZERO_3_PEAK if name == "peak" and row["case"]["stage"] == 3 else 0.1
            assert row["planned"][name] == pytest.approx(found, rel=near), (name, row["case"])


def planned(case: dict[str, Any]) -> dict[str, float]:
    setup = setup_of(case)
    moved = data_bytes(setup, case["rows"]) + tensor_bytes(setup, case["rows"])
    return {"peak": training_memory(setup).total, "disk": checkpoint_bytes(setup), "moved": moved}


def sent(row: dict[str, Any]) -> float:
    """What a rank of two moves of its messages by rings: half of what is gathered or reduced to one, once
    round each way what all are given the sum of."""
    each = {"all_reduce": 1.0}
    return sum(each.get(name, 0.5) * size for name, size in row["moved"].items())
