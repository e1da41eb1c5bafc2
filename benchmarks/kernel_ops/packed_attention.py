"""Attention over packed rows of short samples against torch's own: one causal call a sample, and one call
under a dense block-diagonal mask.

Shapes: B = 1 row, H heads of queries, K heads of keys and values, T tokens of the row in S samples, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from kernel_ops.case import Case
from torch.nn.functional import scaled_dot_product_attention

from recloom.trainer.packed_attention import packed_attention

HEADS, KEYS, WIDTH = 9, 3, 64  # SmolLM2-135M's
ROWS = ((8, 64), (8, 128), (4, 256), (2, 512), (1, 1024))  # samples x tokens
Attention = Callable[..., torch.Tensor]


def ours(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: list[int]) -> torch.Tensor:
    return packed_attention(torch.nn.Module(), query, key, value, None, bounds)[0]


def a_call_a_sample(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: list[int]
) -> torch.Tensor:
    rows = [slice(*pair) for pair in zip(bounds[:-1], bounds[1:], strict=True)]
    parts = [
        scaled_dot_product_attention(
            query[:, :, row], key[:, :, row], value[:, :, row], is_causal=True, enable_gqa=True
        )
        for row in rows
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def dense_mask(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: list[int]
) -> torch.Tensor:
    sample_T = torch.repeat_interleave(torch.arange(len(bounds) - 1), torch.tensor(bounds).diff())
    mask_TT = (sample_T[:, None] == sample_T).tril().to(query.device)
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask_TT, enable_gqa=True)
    return out.transpose(1, 2).contiguous()


PEERS: dict[str, Attention] = {"sdpa a sample": a_call_a_sample, "sdpa dense mask": dense_mask}


def forward(attend: Attention, heads: Sequence[torch.Tensor], bounds: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return attend(*heads, bounds)


def both(attend: Attention, heads: Sequence[torch.Tensor], bounds: list[int]) -> torch.Tensor:
    """The gradient of the queries; forward and backward are timed together."""
    out = attend(*heads, bounds)
    return torch.autograd.grad(out, heads, torch.ones_like(out))[0]


def same(first: Callable[[], torch.Tensor], second: Callable[[], torch.Tensor]) -> None:
    torch.testing.assert_close(first(), second(), atol=0.05, rtol=0.05)


def cases(device: str) -> Iterator[Case]:
    """Forward, and forward with backward, of rows of equal samples in bfloat16."""
    for samples, length in ROWS:
        torch.manual_seed(0)
        bounds = [length * number for number in range(samples + 1)]
        heads = [
            torch.randn(1, count, bounds[-1], WIDTH, dtype=torch.bfloat16, device=device, requires_grad=True)
            for count in (HEADS, KEYS, KEYS)
        ]
        shape = f"H={HEADS} K={KEYS} D={WIDTH} S={samples} x {length}"
        moved = 2 * sum(tensor.numel() for tensor in (*heads, heads[0]))
        for name, step, times in (("forward", forward, 1), ("forward + backward", both, 3)):
            for peer, theirs in PEERS.items():
                mine, other = partial(step, ours, heads, bounds), partial(step, theirs, heads, bounds)
                check = partial(same, mine, other)
                op = f"packed attention {name}"
                yield Case(op, peer, shape, "bfloat16", mine, other, check, times * moved)
