"""One flash attention for a packed row: what it is told here, what it computes on a GPU.

Shapes: B = 1 row, H heads of queries, K heads of keys, T tokens, D head width.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from recloom.trainer import packed_attention as packed
from recloom.trainer.packed_attention import packed_attention
from recloom.trainer.varlen_attention import CAUSAL, fits

LENGTHS = [3, 1, 40, 17]
BOUNDARIES = list(accumulate(LENGTHS, initial=0))


def random_heads(device: str, dtype: torch.dtype, heads: int = 6, groups: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    counts = (heads, groups, groups)
    made = [torch.randn(1, n, BOUNDARIES[-1], 16, dtype=dtype, device=device) for n in counts]
    return [one.requires_grad_() for one in made]


def as_documented(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    **told: Any,
) -> Tensor:
    """What torch says of `varlen_attn`, sample by sample, for the causal window."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and told["window_size"] == CAUSAL == (-1, 0)
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert told["enable_gqa"] == (query.shape[1] != key.shape[1])
    parts = []
    for start, end in pairwise(cu_seq_q.tolist()):
        one = [tensor[None, start:end].transpose(1, 2) for tensor in (query, key, value)]
        options = {"is_causal": True, "scale": told["scale"], "enable_gqa": told["enable_gqa"]}
        parts.append(scaled_dot_product_attention(*one, **options)[0].transpose(0, 1))
    return torch.cat(parts)


def results(heads: list[Tensor], scaling: float | None) -> list[Tensor]:
    found_BTHD, weights = packed_attention(torch.nn.Module(), *heads, None, BOUNDARIES, scaling)
    assert weights is None
    slope = torch.linspace(-1, 1, found_BTHD.numel(), device=found_BTHD.device).view_as(found_BTHD)
    return [found_BTHD, *torch.autograd.grad((found_BTHD * slope).sum(), heads)]


@pytest.mark.parametrize(("groups", "scaling"), [(2, None), (6, 0.3)])
def test_the_row_in_one_call_is_a_call_a_sample(
    groups: int, scaling: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = random_heads("cpu", torch.float64, groups=groups)
    wanted = results(heads, scaling)
    monkeypatch.setattr(packed, "fits", lambda query, dropout: True)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", as_documented)
    for ours, theirs in zip(results(heads, scaling), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("device", "dtype", "width", "dropout", "capability", "expected"),
    [
        ("cuda", torch.bfloat16, 128, 0.0, (9, 0), True),
        ("cuda", torch.float16, 64, 0.0, (8, 0), True),
        ("cuda", torch.float32, 128, 0.0, (9, 0), False),
        ("cuda", torch.bfloat16, 257, 0.0, (9, 0), False),
        ("cuda", torch.bfloat16, 12, 0.0, (9, 0), False),
        ("cuda", torch.bfloat16, 128, 0.1, (9, 0), False),
        ("cuda", torch.bfloat16, 128, 0.0, (7, 5), False),
        ("cpu", torch.bfloat16, 128, 0.0, (9, 0), False),
    ],
)
def test_where_it_is_taken(
    device: str,
    dtype: torch.dtype,
    width: int,
    dropout: float,
    capability: tuple[int, int],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: capability)
    query: Any = SimpleNamespace(device=SimpleNamespace(type=device), dtype=dtype, shape=(1, 4, 9, width))
    assert fits(query, dropout) == expected


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = random_heads("cuda", torch.bfloat16)
    assert fits(heads[0], 0.0)
    found = results(heads, None)
    monkeypatch.setattr(packed, "fits", lambda query, dropout: False)
    for ours, theirs in zip(found, results(heads, None), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)
