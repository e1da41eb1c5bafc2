"""Softmax over seen keys, against a mask and torch's softmax.

Shapes: K groups, N queries, G heads of a group, S keys.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recloom.kernels.numba_math import rounded, widened
from recloom.kernels.seen_softmax import SeenKeys, softmax_where_seen_

CPU = torch.device("cpu")


@st.composite
def seen_keys(draw: st.DrawFn) -> SeenKeys:
    num_keys = draw(st.sampled_from([1, 2, 7, 16, 33, 70]))
    places = [
        sorted(draw(st.tuples(*[st.integers(0, num_keys - 1)] * 2)) + (draw(st.integers(1, num_keys)),))
        for _ in range(draw(st.integers(1, 4)))
    ]
    columns = torch.tensor(
        [(first, begin, max(end, begin + 1)) for first, begin, end in places], dtype=torch.int32
    )
    return SeenKeys(columns[:, 0], columns[:, 1], columns[:, 2], num_keys, CPU)


def masked(scores_KNGS: Tensor, seen: SeenKeys) -> Tensor:
    """In float64, with the mask written out query by query."""
    hidden_NS = torch.ones(len(seen.first_N), seen.num_keys, dtype=torch.bool)
    for query, (first, begin, end) in enumerate(
        zip(seen.first_N.tolist(), seen.begin_N.tolist(), seen.end_N.tolist(), strict=True)
    ):
        hidden_NS[query, :first] = hidden_NS[query, begin:end] = False
    return scores_KNGS.double().masked_fill(hidden_NS[:, None], -torch.inf).softmax(3)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    seen=seen_keys(),
    groups=st.integers(1, 3),
    heads=st.integers(1, 3),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_equals_a_masked_softmax(
    seen: SeenKeys, groups: int, heads: int, scale: float, dtype: torch.dtype
) -> None:
    """Scores of 1,000 overflow unless the highest is taken out."""
    torch.manual_seed(seen.num_keys)
    scores = (torch.randn(groups, len(seen.first_N), heads, seen.num_keys) * scale).to(dtype)
    wanted = masked(scores, seen)
    found = softmax_where_seen_(scores, seen)
    assert (found.data_ptr() == scores.data_ptr()) == (dtype == torch.bfloat16)
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=1e-6)
    assert torch.equal(found == 0, wanted.to(found.dtype) == 0) or scale > 1, "what is hidden is zero"
    assert (found[seen.hidden_NS[:, None].expand(found.shape)] == 0).all()


def test_threads_change_nothing() -> None:
    scores = torch.randn(3, 40, 3, 70).bfloat16()
    seen = SeenKeys.causal(31, 40, 0, 70, CPU)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(softmax_where_seen_(scores.clone(), seen))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_causal_queries_see_at_least_some() -> None:
    seen = SeenKeys.causal(2, 4, 3, 6, CPU)
    assert (~seen.hidden_NS).sum(1).tolist() == [3, 3, 4, 5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    """A loss that is not finite must be seen as such; keys that are not seen do not matter."""
    for place, is_bad in ((0, True), (2, True), (4, False)):
        scores = torch.zeros(1, 1, 1, 5, dtype=torch.bfloat16)
        scores[..., place] = bad
        found = softmax_where_seen_(scores, SeenKeys.causal(3, 1, 0, 5, CPU))
        assert bool(found.isnan().any()) is is_bad


def test_rounding_is_torchs() -> None:
    values = torch.randn(4096) * 100
    bits = torch.tensor([int(rounded(value)) for value in values.numpy()], dtype=torch.int32)
    wanted = values.bfloat16()
    assert torch.equal(bits.to(torch.uint16).view(torch.bfloat16), wanted)
    widths = [float(widened(value)) for value in wanted.view(torch.uint16).numpy()]
    assert widths == wanted.float().tolist()
