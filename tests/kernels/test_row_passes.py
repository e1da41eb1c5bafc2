"""Norm, rotation and gate as loops, against float64 and against what transformers computes.

Shapes: B rows, T tokens, C width of the model, H heads, D their width, F width of a gated layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from recloom.kernels.row_passes import rms_norm, rotate, silu_gate_

EXAMPLES = settings(max_examples=60, derandomize=True, deadline=None)
few, widths = st.integers(1, 5), st.sampled_from([1, 3, 16, 33, 576])
scales = st.sampled_from([1e-3, 1.0, 30.0])
dtypes = st.sampled_from([torch.bfloat16, torch.float32])


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale
    return made.to(dtype)


def angles(rows: int, tokens: int, width: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """cos and sin (B, T, D), different in every row; both halves alike, as in Llama."""
    half_BTD = drawn(rows, tokens, width // 2, dtype=torch.float32) * 3
    both_BTD = torch.cat([half_BTD, half_BTD], dim=-1)
    return both_BTD.cos().to(dtype), both_BTD.sin().to(dtype)


def roundings(dtype: torch.dtype, count: int) -> float:
    return count * (2**-8 if dtype == torch.bfloat16 else 2**-22)


@EXAMPLES
@given(rows=few, tokens=few, width=widths, scale=scales, dtype=dtypes)
def test_norm(rows: int, tokens: int, width: int, scale: float, dtype: torch.dtype) -> None:
    x_BTC, weight_C = drawn(rows, tokens, width, dtype=dtype, scale=scale), drawn(width, dtype=dtype)
    wide = x_BTC.double()
    wanted = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight_C.double()
    found = rms_norm(x_BTC, weight_C, 1e-5)
    torch.testing.assert_close(found.double(), wanted, rtol=roundings(dtype, 2), atol=1e-30)
    assert found.dtype == dtype


@EXAMPLES
@given(rows=few, tokens=few, width=widths, scale=scales, dtype=dtypes)
def test_gate(rows: int, tokens: int, width: int, scale: float, dtype: torch.dtype) -> None:
    gate_BTF, up_BTF = (drawn(rows, tokens, width + n, dtype=dtype, scale=scale)[..., n:] for n in (0, 1))
    wide = gate_BTF.double()
    wanted = wide / (1 + (-wide).exp()) * up_BTF.double()
    found = silu_gate_(gate_BTF.clone(), up_BTF)
    torch.testing.assert_close(found.double(), wanted, rtol=roundings(dtype, 2), atol=1e-30)
    assert found.dtype == dtype


@EXAMPLES
@given(
    rows=few, tokens=few, heads=few, width=st.sampled_from([2, 6, 16, 64]), shared=st.booleans(), dtype=dtypes
)
def test_rotation(rows: int, tokens: int, heads: int, width: int, shared: bool, dtype: torch.dtype) -> None:
    """In pairs (low, high) it is a turn of the plane, written here as a product of complex numbers."""
    cos_BTD, sin_BTD = angles(1 if shared else rows, tokens, width, dtype)
    heads_BHTD = drawn(rows, tokens, heads, width, dtype=dtype).transpose(1, 2)
    turn = torch.complex(cos_BTD.double(), sin_BTD.double())[:, None, :, : width // 2]
    turned = torch.complex(*heads_BHTD.double().chunk(2, dim=-1)) * turn
    wanted = torch.cat([turned.real, turned.imag], dim=-1)
    found = rotate(heads_BHTD, cos_BTD, sin_BTD)
    atol = roundings(dtype, 3) * float(heads_BHTD.abs().max())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2 * atol)
    assert found.shape == heads_BHTD.shape and found.dtype == dtype


def test_as_transformers_computes_them() -> None:
    """Norm and gate bit for bit but for the order of a sum; the rotation is rounded once, not three times."""
    norm = LlamaRMSNorm(576).bfloat16()
    norm.weight.copy_(drawn(576))
    x_BTC = drawn(2, 40, 576)
    same = rms_norm(x_BTC, norm.weight, norm.variance_epsilon) == norm(x_BTC)
    assert same.float().mean() > 0.999
    gate_BTF, up_BTF = drawn(2, 40, 576), drawn(2, 40, 577)[..., 1:]
    assert torch.equal(silu_gate_(gate_BTF.clone(), up_BTF), torch.nn.functional.silu(gate_BTF) * up_BTF)
    query_BHTD, (cos_BTD, sin_BTD) = drawn(2, 9, 40, 64), angles(2, 40, 64)
    theirs, _ = apply_rotary_pos_emb(query_BHTD, query_BHTD, cos_BTD, sin_BTD)
    torch.testing.assert_close(rotate(query_BHTD, cos_BTD, sin_BTD), theirs, atol=0.06, rtol=0)


def calls() -> list[Callable[[], Tensor]]:
    cos_BTD, sin_BTD = angles(2, 40, 64)
    return [
        lambda: rms_norm(drawn(2, 40, 70), drawn(70), 1e-6),
        lambda: silu_gate_(drawn(2, 40, 70), drawn(2, 40, 70, scale=2.0)),
        lambda: rotate(drawn(2, 3, 40, 64), cos_BTD, sin_BTD),
    ]


@pytest.mark.parametrize("call", calls(), ids=["norm", "gate", "rotation"])
def test_threads_change_nothing(call: Callable[[], Tensor]) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(call())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_the_gate_is_written_over_its_input() -> None:
    gate_BTF = drawn(1, 3, 8)
    assert silu_gate_(gate_BTF, drawn(1, 3, 8)).data_ptr() == gate_BTF.data_ptr()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    x_BTC = drawn(1, 2, 6)
    x_BTC[0, 1, 2] = bad
    assert not rms_norm(x_BTC, drawn(6), 1e-6)[0, 1, 2].isfinite()
    assert not silu_gate_(x_BTC.clone(), drawn(1, 2, 6))[0, 1, 2].isfinite()
    assert not rotate(x_BTC[:, None], *angles(1, 2, 6))[0, 0, 1, 2].isfinite()


def test_autograd_is_not_cut_off() -> None:
    with torch.enable_grad():
        x_BTC, weight_C = drawn(1, 2, 6).requires_grad_(), drawn(6).requires_grad_()
        cos_BTD, sin_BTD = angles(1, 2, 6)
        for out in (
            rms_norm(x_BTC, weight_C, 1e-6),
            silu_gate_(x_BTC, x_BTC),
            rotate(x_BTC[:, None], cos_BTD, sin_BTD),
        ):
            (gradient,) = torch.autograd.grad(out.float().square().sum(), x_BTC, retain_graph=True)
            assert gradient.abs().sum() > 0
