"""Attention of blank infilling over packed rows, against a dense mask written out.

Shapes: B = 1 row, H heads, T tokens, D head width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from blank_networks import all_logits, random_masked, row_of, small_network

from recloom.data_shards.masking import Masked, packed_attention_mask
from recloom.trainer.systems.recsysllm.attention import blank_attention, make_block_mask

WIDTH = 8
Part = tuple[int, int]  # tokens of parts A and B
PARTS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6)
HEADS = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)])
# Several blocks of FlexAttention's mask; a sample over a block's end, one without a part B, one token.
LONG: list[Part] = [(100, 60), (1, 0), (90, 0), (1, 130), (30, 7)]


def row_layout(parts: Sequence[Part]) -> tuple[list[int], list[int]]:
    """Boundaries and lengths of the parts A."""
    return [0, *accumulate(a + b for a, b in parts)], [a for a, _ in parts]


def random_heads(
    length: int, heads: tuple[int, int], width: int = WIDTH, device: str = "cpu"
) -> list[Tensor]:
    """Query, key and value of a row."""
    torch.manual_seed(length)
    counts = (heads[0], heads[1], heads[1])
    return [torch.randn(1, count, length, width, device=device, requires_grad=True) for count in counts]


def dense(heads: Sequence[Tensor], boundaries: list[int], num_a: list[int], scale: float) -> Tensor:
    """Softmax over all pairs of tokens that the mask lets see each other, (1, T, H, D)."""
    query, key, value = heads
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    sees_TT = packed_attention_mask(torch.tensor(boundaries), torch.tensor(num_a), boundaries[-1])
    scores = (query @ key.transpose(2, 3)) * scale
    weights = scores.masked_fill(~sees_TT.to(scores.device), -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


def attended(heads: Sequence[Tensor], boundaries: list[int], num_a: list[int], **options: Any) -> Tensor:
    found, weights = blank_attention(
        torch.nn.Module(), *heads, None, boundaries=boundaries, num_a=num_a, **options
    )
    assert weights is None and found.is_contiguous()
    return found


def gradients(output: Tensor, heads: Sequence[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, output.numel(), device=output.device).reshape(output.shape)
    return list(torch.autograd.grad((output * weight).sum(), heads))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(parts=PARTS, count=HEADS, scale=st.sampled_from([None, 0.7]))
def test_equals_the_dense_mask(parts: list[Part], count: tuple[int, int], scale: float | None) -> None:
    boundaries, num_a = row_layout(parts)
    heads = random_heads(boundaries[-1], count)
    found = attended(heads, boundaries, num_a, scaling=scale)
    wanted = dense(heads, boundaries, num_a, scale or WIDTH**-0.5)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    for own, other in zip(gradients(found, heads), gradients(wanted, heads), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("parts", "count"), [(LONG, (4, 2)), ([(140, 60)], (2, 2)), ([(140, 0)], (2, 1)), ([(1, 0)], (1, 1))]
)
def test_flex_attention_equals_the_dense_mask(parts: list[Part], count: tuple[int, int]) -> None:
    """Uncompiled, it has no backward pass on a CPU."""
    boundaries, num_a = row_layout(parts)
    heads = [tensor.detach() for tensor in random_heads(boundaries[-1], count)]
    mask = make_block_mask(boundaries, num_a, torch.device("cpu"))
    found = attended(heads, boundaries, num_a, block_mask=mask, scaling=0.5)
    torch.testing.assert_close(found, dense(heads, boundaries, num_a, 0.5), atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [(4, 4), (4, 2)])
def test_compiled_flex_attention_equals_the_dense_mask(count: tuple[int, int]) -> None:
    """Forward and backward, as training on a GPU runs it; TF32 is off by default."""
    boundaries, num_a = row_layout(LONG)
    heads = random_heads(boundaries[-1], count, width=64, device="cuda")
    mask = make_block_mask(boundaries, num_a, torch.device("cuda"))
    found = attended(heads, boundaries, num_a, block_mask=mask, scaling=0.125)
    wanted = dense(heads, boundaries, num_a, 0.125)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    for own, other in zip(gradients(found, heads), gradients(wanted, heads), strict=True):
        torch.testing.assert_close(own, other, atol=1e-2, rtol=1e-2)


def test_a_mask_is_refused() -> None:
    heads = random_heads(3, (1, 1))
    with pytest.raises(ValueError, match="takes boundaries, not a mask"):
        blank_attention(torch.nn.Module(), *heads, torch.ones(3, 3), boundaries=[0, 3], num_a=[1])


# --- through a whole model ----------------------------------------------------------------------------


def texts(count: int) -> list[Masked]:
    """Of different lengths; the second has no part B, as an empty row has none."""
    rng = np.random.default_rng(5)
    made = [random_masked(rng, num_units=4 + 2 * n) for n in range(count)]
    shown = slice(made[1].num_a)
    arrays = {name: getattr(made[1], name)[shown] for name in ("ids_T", "targets_T", "inter_T", "intra_T")}
    made[1] = Masked(**arrays, num_a=made[1].num_a, level=made[1].level, spans=())
    return made


def changed(masked: Masked, place: int) -> Masked:
    """Another plain token at one place."""
    ids_T = masked.ids_T.copy()
    ids_T[place] = 2 if ids_T[place] != 2 else 3
    return Masked(**(vars(masked) | {"ids_T": ids_T}))


@torch.no_grad()
def logits_of(made: Sequence[Masked]) -> list[Tensor]:
    """Finite logits of each text of a row."""
    network = small_network()
    row = row_of(made)
    logits_TV = all_logits(network, row).nan_to_num(neginf=0.0)
    return list(logits_TV.split(np.diff(row.boundaries.numpy()).tolist()))


def test_samples_of_a_row_do_not_see_each_other() -> None:
    made = texts(4)
    before = logits_of(made)
    for n, masked in enumerate(made):
        after = logits_of([*made[:n], changed(masked, masked.num_a - 1), *made[n + 1 :]])
        is_same = [torch.equal(old, new) for old, new in zip(before, after, strict=True)]
        assert is_same == [k != n for k in range(4)]


def test_a_sample_reads_the_same_alone_and_in_a_row() -> None:
    made = texts(4)
    for masked, wanted in zip(made, logits_of(made), strict=True):
        torch.testing.assert_close(logits_of([masked])[0], wanted, atol=1e-5, rtol=0)


def test_part_a_sees_all_of_itself() -> None:
    """Its last token tells its first one; nothing of part B does."""
    masked = texts(4)[3]
    (before,), (after,) = logits_of([masked]), logits_of([changed(masked, masked.num_a - 1)])
    assert ((before - after).abs().amax(1) > 1e-4).all(), "parts A and B see it"


def test_part_b_is_causal() -> None:
    masked = texts(4)[3]
    (before,) = logits_of([masked])
    for place in range(masked.num_a, len(masked.ids_T)):
        (after,) = logits_of([changed(masked, place)])
        assert torch.equal(before[:place], after[:place]), "nothing before it sees it"
        assert ((before - after)[place:].abs().amax(1) > 1e-6).all(), "all behind it see it"
