"""Attention of one sample by plain matrix products, a block of queries at a time.

On a CPU with bfloat16 this beats torch's fused attention: forward and backward of samples of up to 512 tokens
take half of its time, of 1,024 tokens two thirds (`benchmarks/kernels.csv`). Blocks keep what a causal mask
throws away small, and heads that share keys are multiplied together, so that keys are never repeated.

Shapes: B = 1 row, H heads of queries, K heads of keys and values (H a multiple of K), G = H / K, T tokens, S
keys that a block sees, D head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 128
LONGEST = 1024  # the backward pass keeps all probabilities; beyond this the fused attention costs less


def pays(query_BHTD: Tensor, dropout: float) -> bool:
    """Whether `block_attention` beats torch's fused attention here."""
    is_slow = query_BHTD.device.type == "cpu" and query_BHTD.dtype == torch.bfloat16
    return is_slow and dropout == 0 and query_BHTD.shape[2] <= LONGEST


def block_attention(
    query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, prefix: int, scaling: float | None
) -> Tensor:
    """Attention (B, H, T, D) in which token i sees the first `prefix` tokens and all up to itself.

    0 is causal attention, T attention without a mask.
    """
    parts = []
    for start in range(0, query_BHTD.shape[2], BLOCK):
        query = query_BHTD[:, :, start : start + BLOCK]
        seen = max(prefix, start + query.shape[2])
        parts.append(one_block(query, key_BKTD[:, :, :seen], value_BKTD[:, :, :seen], start, prefix, scaling))
    return torch.cat(parts, dim=2)


def one_block(
    query_BHTD: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, start: int, prefix: int, scaling: float | None
) -> Tensor:
    """The output of the queries `start`, `start + 1`, ..."""
    batch, heads, length, width = query_BHTD.shape
    groups, seen = batch * key_BKSD.shape[1], key_BKSD.shape[2]
    scale = 1 / math.sqrt(width) if scaling is None else scaling
    query_KGTD = (query_BHTD * scale).reshape(groups, -1, width)
    scores = torch.bmm(query_KGTD, key_BKSD.reshape(groups, seen, width).transpose(1, 2))
    if prefix < seen:
        hidden_TS = torch.ones(length, seen, dtype=torch.bool, device=query_BHTD.device).triu(start + 1)
        hidden_TS[:, :prefix] = False
        scores = scores.view(groups, -1, length, seen).masked_fill(hidden_TS, -torch.inf)
        scores = scores.view(groups, -1, seen)
    out = torch.bmm(torch.softmax(scores, dim=-1), value_BKSD.reshape(groups, seen, width))
    return out.view(batch, heads, length, width)
