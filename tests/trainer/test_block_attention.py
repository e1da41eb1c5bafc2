"""Attention by matrix products, against a softmax over all pairs of tokens written out.

Shapes: B = 1 row, H heads of queries, K heads of keys, T tokens, D head width.
"""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recloom.trainer import block_attention as blocks
from recloom.trainer.block_attention import BLOCK, LONGEST, Sample, block_attention, pays, samples_of
from recloom.trainer.packed_attention import packed_attention

HEADS = [(1, 1), (4, 4), (9, 3), (6, 1)]
# One token, one block, a block's end and what lies just behind it, several blocks.
LENGTHS = [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 37]


def random_heads(length: int, heads: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(length)
    counts = (heads[0], heads[1], heads[1])
    return [torch.randn(1, n, length, 8, dtype=dtype).requires_grad_() for n in counts]


def dense(heads: list[Tensor], prefix: int, scale: float) -> Tensor:
    """The output of one sample (1, T, H, D)."""
    query, key, value = heads
    key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
    place_T = torch.arange(query.shape[2])
    sees_TT = (place_T < prefix) | (place_T <= place_T[:, None])
    scores = (query @ key.transpose(2, 3)) * scale
    return (scores.masked_fill(~sees_TT, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def gradients(out: Tensor, heads: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return list(torch.autograd.grad((out * weight).sum(), heads))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    parts=st.lists(st.tuples(st.sampled_from(LENGTHS), st.floats(0, 1)), min_size=1, max_size=3),
    heads=st.sampled_from(HEADS),
    scale=st.sampled_from([None, 0.3]),
)
def test_equals_the_dense_softmax_of_each_sample(
    parts: list[tuple[int, float]], heads: tuple[int, int], scale: float | None
) -> None:
    lengths, prefixes = [length for length, _ in parts], [round(share * length) for length, share in parts]
    row = random_heads(sum(lengths), heads)
    found = block_attention(*row, samples_of([0, *accumulate(lengths)], prefixes), scale)
    per_sample = zip(*(head.split(lengths, dim=2) for head in row), strict=True)
    alone = [dense(list(one), p, scale or 8**-0.5) for one, p in zip(per_sample, prefixes, strict=True)]
    wanted = torch.cat(alone, dim=1)
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(gradients(found, row), gradients(wanted, row), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_memory_may_lie_token_by_token() -> None:
    """As models hand it over: heads are the inner dimension."""
    whole = random_heads(BLOCK + 9, (4, 2))
    given = [head.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for head in whole]
    samples = [Sample(0, 50), Sample(50, BLOCK + 9, 7)]
    wanted, found = (block_attention(*heads, samples, None) for heads in (whole, given))
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(gradients(found, given), gradients(wanted, whole), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("heads", HEADS)
def test_a_beginning_elsewhere_is_seen(heads: tuple[int, int]) -> None:
    """The second sample's first 7 + 4 tokens are tokens of the first, computed there."""
    length = BLOCK + 40
    row = random_heads(length, heads)
    samples = [Sample(0, 30), Sample(30, length, before=((0, 7), (11, 15)))]
    found = block_attention(*row, samples, 0.3)
    whole = [torch.cat([head[:, :, :7], head[:, :, 11:15], head[:, :, 30:]], dim=2) for head in row]
    wanted = torch.cat(
        [dense([head[:, :, :30] for head in row], 0, 0.3), dense(whole, 0, 0.3)[:, 11:]], dim=1
    )
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(gradients(found, row), gradients(wanted, row), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_pays_only_in_short_bfloat16_on_a_cpu() -> None:
    query = torch.zeros(1, 1, LONGEST + 2, 2, dtype=torch.bfloat16)
    samples = [Sample(0, LONGEST), Sample(LONGEST, LONGEST + 2)]
    assert pays(query, samples, 0.0)
    assert not pays(query, samples, 0.1)
    assert not pays(query.float(), samples, 0.0)
    assert not pays(query.to("meta"), samples, 0.0)
    assert not pays(query, [Sample(0, LONGEST + 2)], 0.0)
    assert not pays(query, [Sample(0, LONGEST), Sample(LONGEST, LONGEST + 2, before=((0, LONGEST),))], 0.0)


def test_packed_rows_in_bfloat16_are_near_the_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both round to bfloat16; the sharper bound is that of float64 above."""
    boundaries = [0, *accumulate([3, 200, 1, 130])]
    heads = random_heads(boundaries[-1], (9, 3), torch.bfloat16)
    ours = packed_attention(torch.nn.Module(), *heads, None, boundaries)[0]
    monkeypatch.setattr(blocks, "LONGEST", 0)
    fused = packed_attention(torch.nn.Module(), *heads, None, boundaries)[0]
    assert not torch.equal(ours, fused), "the fused attention ran both times"
    torch.testing.assert_close(ours, fused, atol=0.03, rtol=0.03)
    for mine, theirs in zip(gradients(ours, heads), gradients(fused, heads), strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.05, rtol=0.05)
