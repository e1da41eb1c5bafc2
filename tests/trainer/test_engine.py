"""ZeRO on several ranks against a plain single-process PyTorch loop."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from fixed_samples import FixedSamples
from plain_loop import plain_training
from ranks import run_ranks

from recloom.data_shards.errors import UserError
from recloom.trainer.config import ModelBlock, ParallelBlock, TrainingBlock
from recloom.trainer.engine import deepspeed_json
from recloom.trainer.loop import learning_rate

SCRIPT = Path(__file__).parent / "zero_ranks.py"


@pytest.fixture(scope="module")
def plain_losses(tiny_llama: Path) -> list[list[float]]:
    """Independent reference."""
    steps = plain_training(tiny_llama, FixedSamples()).steps
    assert len(steps) >= 10
    return steps


@pytest.mark.parametrize(
    ("world_size", "stage", "checkpointing"), [(1, 3, "no"), (2, 3, "yes"), (4, 3, "no"), (2, 2, "no")]
)
def test_zero_equals_plain_loop(
    tiny_llama: Path,
    tmp_path: Path,
    plain_losses: list[list[float]],
    world_size: int,
    stage: int,
    checkpointing: str,
) -> None:
    out = tmp_path / "losses.json"
    run_ranks(SCRIPT, world_size, str(tiny_llama), str(out), str(stage), checkpointing)
    losses_S, norms_S = torch.tensor(json.loads(out.read_text())).T
    plain_losses_S, plain_norms_S = torch.tensor(plain_losses).T
    torch.testing.assert_close(losses_S, plain_losses_S, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norms_S, plain_norms_S, rtol=1e-4, atol=1e-5)


def test_gradient_clipping_is_always_spelled_out() -> None:
    """DeepSpeed clips at 1.0 when the key is absent."""
    made = deepspeed_json(
        ModelBlock(path="x"), TrainingBlock(gradient_clipping=0.0, rows_per_step=8), ParallelBlock(), 4
    )
    assert made["gradient_clipping"] == 0.0
    assert made["gradient_accumulation_steps"] == 2


def test_rows_that_ranks_cannot_share() -> None:
    with pytest.raises(UserError, match="rows_per_step = 6: 4 ranks"):
        deepspeed_json(ModelBlock(path="x"), TrainingBlock(rows_per_step=6), ParallelBlock(), 4)


def test_learning_rate_schedule() -> None:
    training = TrainingBlock(learning_rate=1.0, warmup_steps=4)
    rates = [learning_rate(step, 12, training) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0 and rates[8] == pytest.approx(0.5) and 0 < rates[11] < 0.1


def test_constant_learning_rate_stays_at_its_peak_behind_the_warm_up() -> None:
    training = TrainingBlock(learning_rate=1.0, warmup_steps=4, schedule="constant")
    assert [learning_rate(step, 8, training) for step in range(8)] == [0.25, 0.5, 0.75, *[1.0] * 5]
