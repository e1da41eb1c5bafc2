"""The loss of a divided vocabulary against torch's: values and gradients. Ranks are threads here.

Shapes: A rows, V words.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from recloom.trainer import vocabulary_loss
from recloom.trainer.vocabulary_loss import VocabularyShard, shard_of, summed_cross_entropy

SIZES = (5, 3, 4)  # words of each rank


class Group:
    """All-reduce among threads, one a rank."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.values: dict[int, Tensor] = {}

    def all_reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> None:
        self.values[threading.get_ident()] = tensor.clone()
        self.barrier.wait(timeout=60)
        stacked = torch.stack(list(self.values.values()))
        self.barrier.wait(timeout=60)
        tensor.copy_(stacked.amax(0) if op == dist.ReduceOp.MAX else stacked.sum(0))


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    def all_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None) -> None:
        group.all_reduce(tensor, op)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    return Group(len(SIZES))


@pytest.mark.parametrize("scale", [1.0, 500.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_equal_torch(group: Group, scale: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits_AV = (scale * torch.randn(7, sum(SIZES))).to(dtype)
    target_A = torch.tensor([0, 4, 5, 7, 8, 11, 3])
    whole_AV = logits_AV.clone().requires_grad_()
    wanted = cross_entropy(whole_AV.float(), target_A, reduction="sum")
    wanted.backward()
    starts = [sum(SIZES[:rank]) for rank in range(len(SIZES))]

    def loss_of(rank: int) -> tuple[float, Tensor]:
        part_AV = logits_AV.split(SIZES, dim=1)[rank].clone().requires_grad_()
        loss = summed_cross_entropy(part_AV, target_A, VocabularyShard(starts[rank], group))
        loss.backward()
        assert part_AV.grad is not None and loss.dtype == torch.float32
        return loss.item(), part_AV.grad

    with ThreadPoolExecutor(len(SIZES)) as ranks:
        found = list(ranks.map(loss_of, range(len(SIZES))))
    assert len({loss for loss, _ in found}) == 1, "each rank has the whole loss"
    assert found[0][0] == pytest.approx(wanted.item(), rel=1e-6)
    gradient_AV = torch.cat([gradient for _, gradient in found], dim=1)
    torch.testing.assert_close(gradient_AV, whole_AV.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 13, 10**6])
def test_a_vocabulary_that_is_not_divided(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, at_once: int
) -> None:
    monkeypatch.setattr(vocabulary_loss, "AT_ONCE", at_once)  # one row, two rows, all rows at a time
    torch.manual_seed(1)
    logits_AV = (4 * torch.randn(7, 6)).to(dtype)
    logits_AV[:, 4] = -torch.inf  # a word that is never predicted
    target_A = torch.tensor([1, 2, 5, 0, 0, 3, 5])
    ours_AV, peer_AV = (logits_AV.clone().requires_grad_() for _ in range(2))
    found = summed_cross_entropy(ours_AV, target_A, None)
    wanted = cross_entropy(peer_AV.float(), target_A, reduction="sum")
    assert found.dtype == torch.float32 and found.item() == pytest.approx(wanted.item(), rel=1e-6)
    (0.3 * found).backward()
    (0.3 * wanted).backward()
    torch.testing.assert_close(ours_AV.grad, peer_AV.grad)


def test_no_rows_cost_nothing() -> None:
    logits_AV = torch.randn(0, 6, requires_grad=True)
    loss = summed_cross_entropy(logits_AV, torch.zeros(0, dtype=torch.long), None)
    loss.backward()
    assert loss.item() == 0 and logits_AV.grad is not None and logits_AV.grad.shape == (0, 6)


def test_which_heads_are_divided() -> None:
    assert shard_of(torch.nn.Linear(2, 3)) is None and shard_of(None) is None
    head = SimpleNamespace(is_vocab_parallel_lm_head=True, vocab_start_index=4, mp_group="group")
    assert shard_of(head) == VocabularyShard(4, "group")
