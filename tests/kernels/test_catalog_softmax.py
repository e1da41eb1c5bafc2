"""Catalogue softmax: against the eager formula in float64, its memory, its Triton kernels, its refusals."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recloom.kernels import catalog_softmax as op
from recloom.kernels import catalog_softmax_gpu as gpu
from recloom.kernels.catalog_softmax import catalog_softmax

sys.path.insert(0, str(Path(__file__).parent))
from triton_tools import CAPABILITIES, compiled, interpret  # noqa: E402

SHAPES = [(1, 1, 1), (3, 1, 5), (1, 127, 3), (3, 129, 16), (127, 129, 33), (129, 1000, 20)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def drawn(shape: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    users, items, width = shape
    generator = torch.Generator().manual_seed(seed)
    users_ND = torch.randn(users, width, generator=generator, dtype=torch.float64).to(dtype)
    items_ID = torch.randn(items, width, generator=generator, dtype=torch.float64).to(dtype)
    targets_N = torch.randint(0, items, (users,), generator=generator)
    return users_ND.requires_grad_(), items_ID.requires_grad_(), targets_N


def expected(
    users_ND: Tensor, items_ID: Tensor, targets_N: Tensor, temperature: float, cosine: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients by the definition, in float64."""
    left_ND = users_ND.detach().double().requires_grad_()
    right_ID = items_ID.detach().double().requires_grad_()
    logits_NI = left_ND @ right_ID.T / temperature
    if cosine:
        logits_NI = F.normalize(left_ND, dim=1) @ F.normalize(right_ID, dim=1).T / temperature
    chosen_N = logits_NI.gather(1, targets_N[:, None])[:, 0]
    loss = (torch.logsumexp(logits_NI, 1) - chosen_N).mean()
    grad_ND, grad_ID = torch.autograd.grad(loss, (left_ND, right_ID))
    return loss.detach(), grad_ND, grad_ID


def results(
    users_ND: Tensor, items_ID: Tensor, targets_N: Tensor, temperature: float, cosine: bool, backend: str
) -> tuple[Tensor, ...]:
    loss = catalog_softmax(users_ND, items_ID, targets_N, temperature, cosine, backend=backend)
    return loss.detach(), *torch.autograd.grad(loss, (users_ND, items_ID))


def assert_near(
    ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float, floor: float = 0.01
) -> None:
    """Every error is small beside the largest value of its tensor, or beside what cancels in it."""
    for got, wanted in zip(ours, theirs, strict=True):
        scale = max(float(wanted.abs().max()), floor)
        assert float((got.double() - wanted).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("backend", ["torch", "torch, weights kept", "reference"])
@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    cosine: bool,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(op, "TILE_ELEMENTS", 2000)
    monkeypatch.setattr(op, "USER_BLOCK", 50)
    if backend == "torch":
        monkeypatch.setattr(op, "KEPT_ELEMENTS", 0)
    backend = backend.partition(",")[0]
    inputs = drawn(shape, dtype)
    # Small temperatures take the way with a running maximum.
    for temperature in (0.5, 0.01):
        # Rounding of a logit is relative to the logit, which is in the hundreds here.
        tolerance = TOLERANCE[dtype] * (1 if temperature == 0.5 else 20 if cosine else 200)
        assert_near(
            results(*inputs, temperature, cosine, backend),
            expected(*inputs, temperature, cosine),
            tolerance,
            floor=1 / (temperature * shape[0]),
        )


@pytest.fixture(params=[0, 1 << 21], ids=["weights recomputed", "weights kept"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the items' gradient reads the softmax from memory."""
    monkeypatch.setattr(op, "KEPT_ELEMENTS", request.param)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 300),
    st.integers(1, 20),
    st.floats(0.005, 5.0),
    st.booleans(),
    st.integers(0, 1000),
)
def test_equals_the_definition_for_any_shape(
    users: int, items: int, width: int, temperature: float, cosine: bool, seed: int
) -> None:
    inputs = drawn((users, items, width), torch.float64, seed)
    assert_near(results(*inputs, temperature, cosine, "torch"), expected(*inputs, temperature, cosine), 1e-9)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("temperature", [0.7, 0.02])
@pytest.mark.usefixtures("kept")
def test_gradients_by_finite_differences(temperature: float, cosine: bool) -> None:
    users_ND, items_ID, targets_N = drawn((4, 7, 3), torch.float64)
    assert torch.autograd.gradcheck(
        lambda left, right: catalog_softmax(
            left, right, targets_N, temperature, cosine, reduction="none", backend="torch"
        ),
        (users_ND, items_ID),
    )


@pytest.mark.usefixtures("kept")
def test_zero_rows_are_normalised_as_torch_does() -> None:
    users_ND, items_ID, targets_N = drawn((5, 9, 4), torch.float64)
    with torch.no_grad():
        users_ND[1], items_ID[2], items_ID[int(targets_N[0])] = 0, 0, 0
        items_ID[3] *= 1e-14
    inputs = (users_ND, items_ID, targets_N)
    assert_near(results(*inputs, 0.1, True, "torch"), expected(*inputs, 0.1, True), 1e-9)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_no_overflow_at_extreme_logits(backend: str) -> None:
    users_ND, items_ID, targets_N = drawn((5, 200, 8), torch.float32)
    with torch.no_grad():
        users_ND *= 1e3
    for result in results(users_ND, items_ID, targets_N, 0.01, False, backend):
        assert torch.isfinite(result).all()
    aligned_ID = torch.eye(4).requires_grad_()
    loss = catalog_softmax(-aligned_ID.detach(), aligned_ID, torch.arange(4), 0.005, backend=backend)
    assert loss.item() == pytest.approx(200 + math.log(3), rel=1e-6)


def test_reductions() -> None:
    users_ND, items_ID, targets_N = drawn((6, 50, 8), torch.float32)
    losses_N = catalog_softmax(users_ND, items_ID, targets_N, 0.1, reduction="none")
    assert losses_N.shape == (6,)
    torch.testing.assert_close(catalog_softmax(users_ND, items_ID, targets_N, 0.1), losses_N.mean())
    total = catalog_softmax(users_ND, items_ID, targets_N, 0.1, reduction="sum")
    torch.testing.assert_close(total, losses_N.sum())


@pytest.mark.usefixtures("kept")
def test_weighted_losses_reach_both_gradients() -> None:
    inputs = drawn((30, 70, 8), torch.float64)
    weights_N = torch.linspace(-1, 2, 30, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad(
            catalog_softmax(*inputs, 0.1, reduction="none", backend=backend),
            inputs[:2],
            grad_outputs=weights_N,
        )
        for backend in ("torch", "reference")
    )
    assert_near(ours, theirs, 1e-10)


class Allocations(TorchDispatchMode):
    """Records the elements of every tensor made, and the number of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.untyped_storage().nbytes() // value.element_size())
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return result


def test_no_tensor_of_users_times_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "TILE_ELEMENTS", 4096)
    monkeypatch.setattr(op, "KEPT_ELEMENTS", 4096)
    users_ND, items_ID, targets_N = drawn((256, 5000, 8), torch.float32)
    with Allocations() as seen:
        catalog_softmax(users_ND, items_ID, targets_N, 0.1, backend="torch").backward()
    assert seen.largest <= max(items_ID.numel(), 4096)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_frozen_items_cost_no_second_pass(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(gpu, monkeypatch)
    users_ND, items_ID, targets_N = drawn((4, 100, 8), torch.float32)
    frozen_ID = items_ID.detach()
    loss = catalog_softmax(users_ND, frozen_ID, targets_N, 0.1, backend=backend)
    for name in ("_tiled_items_grad", "items_grad_on_gpu"):
        monkeypatch.setattr(op, name, None)
    with Allocations() as seen:
        loss.backward()
    assert seen.products == 0
    assert frozen_ID.grad is None and users_ND.grad is not None
    assert_near((users_ND.grad,), expected(users_ND, items_ID, targets_N, 0.1, True)[1:2], 1e-5)


@pytest.mark.usefixtures("kept")
def test_frozen_users_and_no_grad() -> None:
    users_ND, items_ID, targets_N = drawn((4, 100, 8), torch.float64)
    loss, _, grad_ID = expected(users_ND, items_ID, targets_N, 0.1, True)
    catalog_softmax(users_ND.detach(), items_ID, targets_N, 0.1).backward()
    assert_near((items_ID.grad,), (grad_ID,), 1e-10)
    with torch.no_grad():
        assert_near((catalog_softmax(users_ND, items_ID, targets_N, 0.1),), (loss,), 1e-10)


@pytest.mark.usefixtures("kept")
def test_twice_the_same_bits() -> None:
    inputs = drawn((100, 3000, 16), torch.float32)
    for first, second in zip(
        results(*inputs, 0.05, True, "torch"), results(*inputs, 0.05, True, "torch"), strict=True
    ):
        assert torch.equal(first, second)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 65, 16), (67, 70, 20)])
def test_triton_interpreted(
    shape: tuple[int, int, int], dtype: torch.dtype, cosine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpret(gpu, monkeypatch)
    # The interpreter multiplies the bits of bfloat16 as integers.
    monkeypatch.setattr(op, "dot_dtype", lambda items_ID: torch.float32)
    inputs = drawn(shape, dtype)
    tolerance = 5 * TOLERANCE[dtype]
    wanted = expected(*inputs, 0.2, cosine)
    assert_near(results(*inputs, 0.2, cosine, "triton"), wanted, tolerance, floor=5 / shape[0])


def test_triton_interpreted_zero_rows_and_small_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(gpu, monkeypatch)
    users_ND, items_ID, targets_N = drawn((5, 70, 4), torch.float32)
    with torch.no_grad():
        users_ND[1], items_ID[2], items_ID[int(targets_N[0])] = 0, 0, 0
    inputs = (users_ND, items_ID, targets_N)
    assert_near(results(*inputs, 0.01, True, "triton"), expected(*inputs, 0.01, True), 1e-4)


INTEGERS = ("n_users", "n_items", "share")


def signature(kernel: Any, dtype: str) -> dict[str, str]:
    types = {name: "i32" for name in INTEGERS} | {"targets_N": "*i64"}
    types |= {name: f"*{dtype}" for name in ("factors_ND", "items_ID", "grad_items_ID")}
    constants = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    names = [parameter.name for parameter in kernel.params]
    return {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in names}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("dtype", "width"), [("bf16", 128), ("fp32", 64)])
def test_triton_compiles(dtype: str, width: int, capability: int) -> None:
    factors_ND = torch.empty(1, width, dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    constants = gpu.constants_of(factors_ND, True) | {"EXPECT": True}
    for kernel in (gpu.forward_kernel, gpu.items_grad_kernel):
        types = signature(kernel, dtype)
        used = {name: value for name, value in constants.items() if name in types}
        assert compiled(kernel, types, used, capability)


def broken(field: str, value: float) -> dict[str, Any]:
    users_ND, items_ID, targets_N = drawn((3, 5, 2), torch.float32)
    inputs = {"users_ND": users_ND.detach(), "items_ID": items_ID.detach(), "targets_N": targets_N}
    inputs[field].view(-1)[-1] = value
    return inputs


@pytest.mark.parametrize(
    ("field", "value"),
    [("users_ND", math.nan), ("users_ND", math.inf), ("items_ID", math.nan), ("items_ID", -math.inf)],
)
def test_refuses_what_is_not_finite(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} holds a row that is not finite"):
        catalog_softmax(**broken(field, value), temperature=0.1)


@pytest.mark.parametrize("target", [-1, 5])
def test_refuses_targets_outside(target: int) -> None:
    with pytest.raises(ValueError, match=r"targets_N holds an id outside 0..4.*position 2"):
        catalog_softmax(**broken("targets_N", target), temperature=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"reduction": "max"}, "reduction is 'max'"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
        ({"users_ND": torch.ones(3)}, "users_ND is"),
        ({"users_ND": torch.ones(3, 2, dtype=torch.int64)}, "users_ND is torch.int64"),
        ({"users_ND": torch.ones(0, 2)}, "users_ND is"),
        ({"items_ID": torch.ones(5, 3)}, "items_ID has 3 columns"),
        ({"targets_N": torch.zeros(2, dtype=torch.int64)}, "targets_N is"),
        ({"targets_N": torch.zeros(3)}, "targets_N is torch.float32"),
        ({"users_ND": torch.ones(3, 2, dtype=torch.float64), "backend": "triton"}, "backend is 'triton'"),
    ],
)
def test_refuses_bad_input(change: dict[str, Any], message: str) -> None:
    good = {
        "users_ND": torch.ones(3, 2),
        "items_ID": torch.ones(5, 2),
        "targets_N": torch.zeros(3, dtype=torch.int64),
        "temperature": 0.1,
    }
    with pytest.raises(ValueError, match=message):
        catalog_softmax(**(good | change))


@pytest.mark.gpu
@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype: torch.dtype, cosine: bool) -> None:
    inputs = [tensor.detach().cuda() for tensor in drawn((300, 5000, 128), dtype)]
    left_ND, right_ID = inputs[0].requires_grad_(), inputs[1].requires_grad_()
    ours = results(left_ND, right_ID, inputs[2], 0.2, cosine, "triton")
    assert_near(ours, expected(left_ND, right_ID, inputs[2], 0.2, cosine), 10 * TOLERANCE[dtype])
