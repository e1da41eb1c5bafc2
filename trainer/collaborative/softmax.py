"""Softmax cross-entropy over the whole catalogue without the M x I logits.

Shapes: M rows, C rows of a chunk, I items, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_PER_CHUNK = 1_000_000
"""4 MB: a chunk's logits stay in the cache between the passes over them."""


class SoftmaxLoss(torch.autograd.Function):
    """The gradients are made in the forward pass, chunk by chunk, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, items_ID: Tensor, bias_I: Tensor, targets_M: Tensor) -> Tensor:
        count, total = len(hidden_MD), hidden_MD.new_zeros(())
        grad_MD, grad_ID, grad_I = (torch.zeros_like(part) for part in (hidden_MD, items_ID, bias_I))
        size = max(1, LOGITS_PER_CHUNK // len(items_ID))
        for start in range(0, count, size):
            hidden_CD, target_C1 = hidden_MD[start : start + size], targets_M[start : start + size, None]
            logits_CI = torch.addmm(bias_I, hidden_CD, items_ID.T)
            largest_C1 = logits_CI.amax(1, keepdim=True)
            own_C1 = logits_CI.gather(1, target_C1)
            parts_CI = logits_CI.sub_(largest_C1).exp_()
            sum_C1 = parts_CI.sum(1, keepdim=True)
            total += (sum_C1.log() + largest_C1 - own_C1).sum()
            # softmax minus one-hot, times the sum: the division is cheaper on D columns than on I
            parts_CI.scatter_add_(1, target_C1, -sum_C1)
            torch.mm(parts_CI, items_ID, out=grad_MD[start : start + size])
            grad_MD[start : start + size] /= sum_C1 * count
            grad_ID.addmm_(parts_CI.T, hidden_CD / (sum_C1 * count))
            grad_I.addmv_(parts_CI.T, 1 / (sum_C1[:, 0] * count))
        ctx.save_for_backward(grad_MD, grad_ID, grad_I)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        grad_MD, grad_ID, grad_I = ctx.saved_tensors
        return grad_MD * gradient, grad_ID * gradient, grad_I * gradient, None


def softmax_loss(
    hidden_MD: Tensor, items_ID: Tensor, targets_M: Tensor, bias_I: Tensor | None = None
) -> Tensor:
    """Mean over rows of -log softmax(hidden . items + bias)[target]; exact, differentiable once."""
    bias_I = items_ID.new_zeros(len(items_ID)) if bias_I is None else bias_I
    return SoftmaxLoss.apply(hidden_MD, items_ID, bias_I, targets_M)
