"""Run by test_laser_bituning.py on two ranks: Laser under ZeRO-3, the LLM partitioned and frozen.

Each rank also trains on all users in plain torch and compares.
"""

from __future__ import annotations

import copy
import os
import sys
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from random_llm import random_llm
from torch import Tensor, nn

from recloom.trainer.config import ParallelBlock
from recloom.trainer.engine import start_ranks
from recloom.trainer.packed_attention import PACKED
from recloom.trainer.systems.laser.bituning import BiTuning, Pooling
from recloom.trainer.systems.laser.losses import laser_losses
from recloom.trainer.systems.laser.mformer import MFormer, MFormerSettings

VOCABULARY, HIDDEN, WIDTH, ITEMS, EOS = 60, 16, 5, 30, 2
STEPS, RATE, TOLERANCE = 3, 0.5, 1e-5
SETTINGS = MFormerSettings(experts=3, tokens=2, blocks=2, hidden=8, heads=2, dropout=0)
Part = dict[str, Any]


def make_model(kind: str, pooling: Pooling) -> BiTuning:
    llm = random_llm(PACKED, vocab_size=VOCABULARY, hidden_size=HIDDEN)
    prefix: Any = MFormer(SETTINGS, WIDTH, HIDDEN) if kind == "mformer" else torch.randn(3, HIDDEN)
    return BiTuning(llm, prefix, pooling, llm.embed_tokens.weight.mean(0), EOS)


def make_parts(kind: str) -> list[tuple[Part, Tensor]]:
    """A packed row of two users for each rank, with the users' next items."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for _ in range(2):
        row: Part = {
            "ids": torch.randint(3, VOCABULARY, (9,), generator=generator),
            "boundaries": [0, 5, 9],
        }
        if kind == "mformer":
            row["C_SND"] = torch.randn(2, 3, WIDTH, generator=generator)
            row["real_SN"] = torch.tensor([[True, True, True], [True, False, False]])
        parts.append((row, torch.randint(ITEMS, (2,), generator=generator)))
    return parts


def loss_of(model: nn.Module, row: Part, targets_S: Tensor) -> Tensor:
    items_IH = torch.randn(ITEMS, HIDDEN, generator=torch.Generator().manual_seed(2))
    return laser_losses(model(**row), items_IH, targets_S, 0.5, 0.1).total_S.mean()


def plain_training(model: BiTuning, parts: list[tuple[Part, Tensor]]) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.stack([loss_of(model, *part) for part in parts]).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def check(rank: int, kind: str, pooling: Pooling) -> None:
    """Losses and trained weights of a few steps equal the plain loop's."""
    model = make_model(kind, pooling)
    plain, start = copy.deepcopy(model), copy.deepcopy(model)
    parts = make_parts(kind)
    expected = plain_training(plain, parts)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        },
    )
    for step in range(STEPS):
        loss = loss_of(engine, *parts[rank])
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        assert abs(mean.item() / 2 - expected[step]) < TOLERANCE, (kind, pooling, step, mean, expected)
    assert expected[-1] < expected[0] - 100 * TOLERANCE, "a model that hardly learns shows nothing"
    wanted, before = dict(plain.named_parameters()), dict(start.named_parameters())
    for name, part in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([part]):
            torch.testing.assert_close(part.detach(), wanted[name].detach(), atol=TOLERANCE, rtol=0, msg=name)
            assert not name.startswith("llm.") or torch.equal(part, before[name]), name
    engine.destroy()


def main() -> None:
    torch.set_num_threads(1)
    rank, _ = start_ranks(ParallelBlock(zero_stage=3))
    check(rank, "mformer", "suffix")
    check(rank, "free", "eos")
    sys.stdout.flush()
    dist.barrier()
    os._exit(0)


main()
