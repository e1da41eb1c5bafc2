"""Soft tokens against a loop in Python; the Triton kernels in the interpreter, compiled, and on a GPU."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from ranks import run_ranks
from triton_tools import CAPABILITIES, compiled, interpret

from recloom.kernels import soft_tokens_gpu as gpu
from recloom.kernels.soft_tokens import Backend, soft_tokens

ODD = (1, 3, 127, 129)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RANKS = Path(__file__).parent / "soft_tokens_ranks.py"


def make_inputs(
    positions: int, width: int, dtype: torch.dtype = torch.float32, device: str = "cpu", num_rows: int = 5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source with repeated and unused soft rows, table, fp32 rows, gradient of the output."""
    generator = torch.Generator().manual_seed(1000 * positions + width)
    source_P = torch.randint(0, 11, (positions,), generator=generator)
    soft_P = torch.rand(positions, generator=generator) < 0.4
    source_P[soft_P] = -1 - torch.randint(0, num_rows - 1, (int(soft_P.sum()),), generator=generator)
    table_VH = torch.randn(11, width, generator=generator).to(dtype)
    rows_NH = torch.randn(num_rows, width, generator=generator)
    grad_PH = torch.randn(positions, width, generator=generator).to(dtype)
    return source_P.to(device), table_VH.to(device), rows_NH.to(device), grad_PH.to(device)


def loop(source_P: torch.Tensor, table_VH: torch.Tensor, rows_NH: torch.Tensor) -> torch.Tensor:
    picked = [table_VH[s] if s >= 0 else rows_NH[-1 - s].to(table_VH.dtype) for s in source_P.tolist()]
    return torch.stack(picked) if picked else table_VH[:0]


def loop_gradients(
    source_P: torch.Tensor, table_VH: torch.Tensor, rows_NH: torch.Tensor, grad_PH: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of table and rows in double, by adding position after position."""
    grad_VH, grad_NH = torch.zeros_like(table_VH).double(), torch.zeros_like(rows_NH).double()
    for position, s in enumerate(source_P.tolist()):
        into = grad_VH[s] if s >= 0 else grad_NH[-1 - s]
        into += grad_PH[position].double()
    return grad_VH, grad_NH


def check_equal(
    source_P: torch.Tensor,
    table_VH: torch.Tensor,
    rows_NH: torch.Tensor,
    grad_PH: torch.Tensor,
    backend: Backend | None = None,
    frozen: bool = False,
) -> None:
    """Forward and both gradients equal the loop's, and a second time to the bit."""
    results = []
    for _ in range(2):
        table = table_VH.clone().requires_grad_(not frozen)
        rows = rows_NH.clone().requires_grad_()
        out = soft_tokens(source_P, table, rows, backend=backend)
        out.backward(grad_PH)
        results.append((out.detach(), rows.grad, table.grad))
    (out_PH, grad_NH, grad_VH), again = results
    assert torch.equal(out_PH, loop(source_P, table_VH, rows_NH)) and out_PH.dtype == table_VH.dtype
    expected_VH, expected_NH = loop_gradients(source_P, table_VH, rows_NH, grad_PH)
    torch.testing.assert_close(grad_NH.double(), expected_NH, atol=1e-4, rtol=1e-5)
    assert grad_NH.dtype == rows_NH.dtype
    if frozen:
        assert grad_VH is None
    else:
        loose = 1e-4 if table_VH.dtype == torch.float32 else 0.2  # torch itself sums a table in its dtype
        torch.testing.assert_close(grad_VH.double(), expected_VH, atol=loose, rtol=loose)
        assert torch.equal(grad_VH, again[2])
    assert torch.equal(out_PH, again[0]) and torch.equal(grad_NH, again[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", ODD)
@pytest.mark.parametrize("positions", ODD)
def test_equals_a_loop(positions: int, width: int, dtype: torch.dtype) -> None:
    check_equal(*make_inputs(positions, width, dtype))


def test_frozen_table_gets_no_gradient() -> None:
    check_equal(*make_inputs(129, 3), frozen=True)


def test_many_additions_stay_exact_in_bf16() -> None:
    """4,000 ones summed in bf16 would stop at 256."""
    rows = torch.zeros(1, 3, dtype=torch.bfloat16, requires_grad=True)
    out = soft_tokens(torch.full((4000,), -1), torch.zeros(2, 3, dtype=torch.bfloat16), rows)
    out.sum().backward()
    assert rows.grad is not None and rows.grad.tolist() == [[4000.0] * 3]


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_gradcheck(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(gpu, monkeypatch)
    source_P = torch.tensor([[2, -1, -1], [-3, 0, 2]])
    table_VH = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    rows_ND = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    projection = nn.Linear(3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda table, rows: soft_tokens(source_P, table, rows, projection, backend), (table_VH, rows_ND)
    )


def test_empty_batch_and_no_soft_rows() -> None:
    table_VH = torch.randn(4, 3)
    rows = torch.randn(2, 3, requires_grad=True)
    out = soft_tokens(torch.empty(2, 0, dtype=torch.long), table_VH, rows)
    assert out.shape == (2, 0, 3)
    out.sum().backward()
    assert rows.grad is not None and rows.grad.tolist() == [[0.0] * 3] * 2
    ids = torch.tensor([[3, 0]])
    assert torch.equal(soft_tokens(ids, table_VH, torch.empty(0, 3)), table_VH[ids])


def test_strides_and_half_precision_rows() -> None:
    source_P, table_VH, rows_NH, grad_PH = make_inputs(127, 6)
    wide_VH, wide_NH = torch.zeros(11, 12), torch.zeros(6, 5)
    wide_VH[:, ::2], wide_NH[:] = table_VH, rows_NH.T
    assert torch.equal(soft_tokens(source_P, wide_VH[:, ::2], wide_NH.T), loop(source_P, table_VH, rows_NH))
    half = rows_NH.half().requires_grad_()
    soft_tokens(source_P, table_VH, half).backward(grad_PH)
    assert half.grad is not None and half.grad.dtype == torch.float16


def test_projection_learns() -> None:
    source_P, table_VH, rows_NH, grad_PH = make_inputs(129, 4)
    projection = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 4))
    vectors_ND = torch.randn(5, 3, requires_grad=True)
    soft_tokens(source_P, table_VH, vectors_ND, projection).backward(grad_PH)
    gradients = [vectors_ND.grad, *(parameter.grad for parameter in projection.parameters())]
    inputs = [vectors_ND, *projection.parameters()]
    expected = torch.autograd.grad(loop(source_P, table_VH, projection(vectors_ND)), inputs, grad_PH)
    for gradient, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, theirs)


@pytest.mark.parametrize("padding_id", [None, 3])
def test_embedding_module_is_read_directly(padding_id: int | None) -> None:
    source_P, table_VH, rows_NH, grad_PH = make_inputs(129, 4)
    embedding = nn.Embedding(11, 4, padding_idx=padding_id, _weight=table_VH.clone())
    out = soft_tokens(source_P, embedding, rows_NH)
    assert type(out.grad_fn).__name__ == "_GatherBackward"
    out.backward(grad_PH)
    expected_VH = loop_gradients(source_P, table_VH, rows_NH, grad_PH)[0].float()
    if padding_id is not None:
        expected_VH[padding_id] = 0
    torch.testing.assert_close(embedding.weight.grad, expected_VH)


class Scaled(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2.0


class Alias(torch.autograd.Function):
    """What DeepSpeed's row-parallel reduction does: its input is its output."""

    @staticmethod
    def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
        return value

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        return grad


class Aliased(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return Alias.apply(super().forward(input) * 2.0)


class Transposed(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return (super().forward(input) * 2.0).transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("kind", [Scaled, Aliased, Transposed])
@pytest.mark.parametrize("frozen", [False, True])
def test_other_modules_are_called(kind: type[nn.Embedding], frozen: bool) -> None:
    source_P, table_VH, rows_NH, grad_PH = make_inputs(127, 5)
    embedding = kind(11, 5, _weight=table_VH.clone()).requires_grad_(not frozen)
    rows = rows_NH.clone().requires_grad_()
    out = soft_tokens(source_P, embedding, rows)
    out.backward(grad_PH)
    assert torch.equal(out, loop(source_P, 2 * table_VH, rows_NH))
    expected_VH, expected_NH = loop_gradients(source_P, table_VH, rows_NH, grad_PH)
    torch.testing.assert_close(rows.grad, expected_NH.float())
    if frozen:
        assert embedding.weight.grad is None
    else:
        torch.testing.assert_close(embedding.weight.grad, 2 * expected_VH.float())


def test_a_hook_that_makes_inputs_require_gradients() -> None:
    """What `enable_input_require_grads` of transformers does; a leaf may not be written to."""
    source_P, table_VH, rows_NH, grad_PH = make_inputs(127, 5)
    embedding = nn.Embedding(11, 5, _weight=table_VH.clone()).requires_grad_(False)
    embedding.register_forward_hook(lambda _, __, output: output.requires_grad_(True))
    out = soft_tokens(source_P, embedding, rows_NH)
    assert torch.equal(out, loop(source_P, table_VH, rows_NH))
    out.backward(grad_PH)


def call(**changes: object) -> torch.Tensor:
    given = {"source_X": torch.tensor([1, -1]), "table": torch.zeros(4, 3), "soft_rows": torch.zeros(2, 3)}
    return soft_tokens(**{**given, **changes})  # type: ignore[arg-type]


class Unsized(nn.Module):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return ids.unsqueeze(-1).float()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_X": torch.tensor([1, 4])}, r"source: must be in \[-2, 4\).*4 ids.*2 soft rows.*found 4"),
        ({"source_X": torch.tensor([1, -3])}, r"source: must be in \[-2, 4\).*found -3"),
        ({"source_X": torch.tensor([1.0])}, "source: dtype torch.float32, must be torch.int64"),
        ({"soft_rows": torch.zeros(2, 5)}, "soft_rows: width 5, must be table's 3"),
        ({"soft_rows": torch.zeros(3)}, r"soft_rows: torch.float32 \(3,\), must be floating"),
        ({"soft_rows": torch.zeros(2, 3, dtype=torch.int64)}, "soft_rows: torch.int64"),
        ({"table": torch.zeros(4, 3, dtype=torch.int8)}, "table: torch.int8"),
        ({"table": torch.zeros(4, 2, 3)}, "table: .*must be floating"),
        ({"table": torch.zeros(0)}, r"table: torch.float32 \(0,\).*pass the embedding module"),
        ({"table": Unsized()}, "table: Unsized must say how many rows.*num_embeddings"),
        ({"table": Scaled(4, 3), "source_X": torch.tensor([4])}, r"source: must be in \[-2, 4\)"),
        ({"table": Scaled(4, 5)}, "soft_rows: width 3, must be embeddings's 5"),
        ({"backend": "cuda"}, "backend: 'cuda', must be"),
        ({"backend": "triton"}, 'backend: "triton" on cpu, needs tensors on a GPU'),
        ({"soft_rows": torch.zeros(2, 3, device="meta")}, "soft_rows: on meta, must be on source's cpu"),
        ({"table": torch.zeros(4, 3, device="meta")}, "table: on meta, must be on soft_rows' cpu"),
    ],
)
def test_errors(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("positions", "width", "dtype"),
    [(1, 1, torch.float32), (13, 3, torch.bfloat16), (7, 129, torch.float16), (21, 5, torch.float32)],
)
def test_triton_in_the_interpreter(
    positions: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpret(gpu, monkeypatch)
    source_P, table_VH, rows_NH, grad_PH = make_inputs(positions, width, dtype)
    rows_NH = rows_NH.to(dtype).float()  # the interpreter truncates to bf16, where a GPU rounds
    check_equal(source_P, table_VH, rows_NH, grad_PH, backend="triton")


def test_triton_blocks_strides_and_overlay_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(gpu, monkeypatch)
    monkeypatch.setattr(gpu, "ROW_BLOCK", 4)
    monkeypatch.setattr(gpu, "SUM_BLOCK", 2)
    source_P, table_VH, rows_NH, grad_PH = make_inputs(40, 5)
    check_equal(source_P, table_VH, rows_NH, grad_PH, backend="triton")
    check_equal(source_P, table_VH, rows_NH.T.contiguous().T, grad_PH[:1].expand(40, 5), backend="triton")
    rows = rows_NH.clone().requires_grad_()
    out = soft_tokens(source_P, Scaled(11, 5, _weight=table_VH), rows, backend="triton")
    out.backward(grad_PH)
    assert torch.equal(out, loop(source_P, 2 * table_VH, rows_NH))
    expected_NH = loop_gradients(source_P, table_VH, rows_NH, grad_PH)[1].float()
    torch.testing.assert_close(rows.grad, expected_NH)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_kernels_compile(capability: int, dtype: str) -> None:
    sizes = dict.fromkeys(("H", "table_stride", "table_step", "rows_stride", "rows_step"), "i32")
    pointers = {"source_ptr": "*i64", "table_ptr": f"*{dtype}", "rows_ptr": "*fp32", "out_ptr": f"*{dtype}"}
    for overlay in (False, True):
        constants = {"OVERLAY": overlay, "BLOCK": gpu.ROW_BLOCK}
        signature = {**pointers, **sizes, **dict.fromkeys(constants, "constexpr")}
        assert compiled(gpu.gather_kernel, signature, constants, capability)
    constants = {"DOUBLE": False, "POSITIONS": gpu.SUM_POSITIONS, "BLOCK": gpu.SUM_BLOCK}
    sizes = dict.fromkeys(("H", "grad_stride", "grad_step"), "i32")
    pointers = {"grad_ptr": f"*{dtype}", "order_ptr": "*i64", "start_ptr": "*i64", "out_ptr": "*fp32"}
    signature = {**pointers, **sizes, **dict.fromkeys(constants, "constexpr")}
    assert compiled(gpu.sum_kernel, signature, constants, capability)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("positions", "width"), [*pairwise(ODD), (4096, 4096), (257, 4097)])
def test_on_a_gpu(positions: int, width: int, dtype: torch.dtype) -> None:
    check_equal(*make_inputs(positions, width, dtype, "cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("positions", [129, 5000])  # torch sums a table's gradient in two ways
def test_nothing_waits_for_a_gpu(positions: int) -> None:
    source_P, table_VH, rows_NH, grad_PH = make_inputs(positions, 64, torch.bfloat16, "cuda")
    tables = [table_VH.clone().requires_grad_(), Scaled(11, 64, _weight=table_VH.clone()).cuda()]
    rows = rows_NH.requires_grad_()
    for table in tables:
        soft_tokens(source_P, table, rows).backward(grad_PH)  # compiles the kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for table in tables:
            soft_tokens(source_P, table, rows).backward(grad_PH)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("world_size", [2, 4])
def test_zero3_and_tensor_parallel_equal_one_process(world_size: int) -> None:
    """ZeRO-3 on 2 ranks, with tensor parallel 2 on 4; both ways of sharding a vocabulary on 2."""
    run_ranks(RANKS, world_size)
