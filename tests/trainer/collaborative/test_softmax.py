"""The chunked softmax loss and its gradients against PyTorch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recloom.trainer.collaborative import softmax


@pytest.mark.parametrize("chunk", [1, 45, 10**6])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_cross_entropy(chunk: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large logits, repeated targets, a last chunk that is smaller."""
    monkeypatch.setattr(softmax, "LOGITS_PER_CHUNK", chunk)
    torch.manual_seed(0)
    parts = [torch.randn(23, 5, dtype=torch.float64) * 9, torch.randn(11, 5, dtype=torch.float64)]
    parts += [torch.randn(11, dtype=torch.float64)] if with_bias else []
    targets_M = torch.randint(11, (23,))
    ours, peers = ([part.clone().requires_grad_() for part in parts] for _ in range(2))
    loss = softmax.softmax_loss(ours[0], ours[1], targets_M, *ours[2:])
    want = F.cross_entropy(F.linear(peers[0], peers[1], *peers[2:]), targets_M)
    torch.testing.assert_close(loss, want)
    (3 * loss).backward()
    (3 * want).backward()
    for part, peer in zip(ours, peers, strict=True):
        torch.testing.assert_close(part.grad, peer.grad)


def test_huge_logits_stay_finite() -> None:
    hidden_MD = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    items_ID = torch.tensor([[1.0], [2.0], [-3.0]])
    loss = softmax.softmax_loss(hidden_MD, items_ID, torch.tensor([1, 0]))
    loss.backward()
    assert hidden_MD.grad is not None and torch.isfinite(hidden_MD.grad).all()
    assert abs(loss.item() - 2e4) < 1
