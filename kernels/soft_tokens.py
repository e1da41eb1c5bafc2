"""Input embeddings of a batch in one pass from token ids, the embedding table and soft rows.

A *source* (`recloom.kernels.soft_layout`) says where each position's embedding comes from: value
>= 0 is a row of the table, value < 0 is soft row `-1 - value`, which is `~value`. Each output
element is written once; the gradient of a soft row is the sum over its positions in their order,
so it is the same bits every time.

Shapes: P positions of the batch, whatever its layout (X), H hidden width, V rows of the table, N
soft rows, D their width before a projection, Q the positions that hold soft rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from recloom.kernels.soft_layout import require_int64, require_range
from recloom.kernels.soft_tokens_gpu import gather_on_gpu, runs_on, sum_on_gpu

Backend = Literal["reference", "triton"]


def soft_tokens(
    source_X: torch.Tensor,
    table: torch.Tensor | nn.Module,
    soft_rows: torch.Tensor,
    projection: Callable[[torch.Tensor], torch.Tensor] | None = None,
    backend: Backend | None = None,
) -> torch.Tensor:
    """Embeddings of a batch in which some positions are soft rows, differentiable.

    User and item vectors among the tokens of a prompt are A-LLMRec's section 3.2, trainable rows
    around it Laser's section 3.2. Several kinds of rows, each with its own projection: project
    them first and pass `torch.cat` of the results.

    Args:
        source_X: int64, padded (rows, tokens) or packed (tokens,) or any shape.
        table: the embedding table (V, H), or the model's embedding module. A plain `nn.Embedding`
            is read directly. Any other, and one that ZeRO-3 has partitioned, is called on the ids,
            soft positions holding id 0, and the soft rows are laid over its result; it must have
            `num_embeddings` or `vocab_size`, the rows of the whole table, for the check of ids.
        soft_rows: (N, H) of a floating dtype, or (N, D) with a projection; N may be 0.
        projection: makes (N, H) of soft_rows.
        backend: None takes "triton" on a GPU and else "reference", which waits for a GPU.

    Returns:
        (*X, H) in the table's dtype. Gradients go to the soft rows (summed in fp32 at least, the
        same bits every time) and to the table where it wants them.

    Raises:
        ValueError: dtype, width, device, an id outside the table or a soft row outside soft_rows.
            On a GPU the last two are asserted by the device, because nothing here waits for it.
    """
    rows_NH = soft_rows if projection is None else projection(soft_rows)
    require_int64("source", source_X)
    _require_rows(rows_NH, source_X)
    triton_runs = _triton_runs(backend, source_X)
    weight = _whole_table(table)
    if weight is None:
        assert isinstance(table, nn.Module)
        _require_ids(source_X, _num_embeddings(table), len(rows_NH))
        embedded_XH = table(source_X.clamp(min=0))
        _require_same("embeddings", embedded_XH, rows_NH, tuple(source_X.shape))
        return _Overlay.apply(embedded_XH, source_X, rows_NH, _is_ours(embedded_XH), triton_runs)
    _require_same("table", weight, rows_NH, tuple(weight.shape[:1]))
    _require_ids(source_X, len(weight), len(rows_NH))
    padding_id = getattr(table, "padding_idx", None)
    return _Gather.apply(source_X, weight, rows_NH, -1 if padding_id is None else padding_id, triton_runs)


class _Gather(torch.autograd.Function):
    """Rows of the table and soft rows, copied into a new tensor."""

    @staticmethod
    def forward(
        ctx: Any,
        source_X: torch.Tensor,
        table_VH: torch.Tensor,
        rows_NH: torch.Tensor,
        padding_id: int,
        triton_runs: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(source_X)
        ctx.num_rows, ctx.rows_dtype, ctx.table_rows = len(rows_NH), rows_NH.dtype, len(table_VH)
        ctx.padding_id, ctx.triton_runs = padding_id, triton_runs
        H = table_VH.shape[1]
        out_PH = table_VH.new_empty((source_X.numel(), H))
        source_P = source_X.reshape(-1)
        if triton_runs:
            gather_on_gpu(source_P, table_VH, rows_NH, out_PH)
        else:
            torch.index_select(table_VH, 0, source_P.clamp(min=0), out=out_PH)
            _write_rows(source_P, rows_NH, out_PH)
        return out_PH.view(*source_X.shape, H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (source_X,) = ctx.saved_tensors
        grad_table_VH = grad_rows_NH = None
        if ctx.needs_input_grad[1]:
            # The ignored id takes the soft positions along, which spares a masked copy of the gradient.
            ids_X = source_X.masked_fill(source_X < 0, ctx.padding_id)
            grad_table_VH = torch.ops.aten.embedding_dense_backward(
                grad_XH, ids_X, ctx.table_rows, ctx.padding_id, False
            )
        if ctx.needs_input_grad[2]:
            grad_rows_NH = _sum_rows(source_X, grad_XH, ctx)
        return None, grad_table_VH, grad_rows_NH, None, None


class _Overlay(torch.autograd.Function):
    """Soft rows laid over embeddings that a module has just made, in place where `ours`."""

    @staticmethod
    def forward(
        ctx: Any,
        embedded_XH: torch.Tensor,
        source_X: torch.Tensor,
        rows_NH: torch.Tensor,
        ours: bool,
        triton_runs: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(source_X)
        ctx.num_rows, ctx.rows_dtype, ctx.triton_runs = len(rows_NH), rows_NH.dtype, triton_runs
        out_XH = embedded_XH if ours else embedded_XH.clone(memory_format=torch.contiguous_format)
        if ours:
            ctx.mark_dirty(embedded_XH)
        out_PH = out_XH.view(-1, out_XH.shape[-1])
        if triton_runs:
            gather_on_gpu(source_X.reshape(-1), None, rows_NH, out_PH)
        else:
            _write_rows(source_X.reshape(-1), rows_NH, out_PH)
        return out_XH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (source_X,) = ctx.saved_tensors
        grad_embedded_XH = grad_rows_NH = None
        if ctx.needs_input_grad[0]:
            grad_embedded_XH = grad_XH.masked_fill((source_X < 0).unsqueeze(-1), 0)
        if ctx.needs_input_grad[2]:
            grad_rows_NH = _sum_rows(source_X, grad_XH, ctx)
        return grad_embedded_XH, None, grad_rows_NH, None, None


def _write_rows(source_P: torch.Tensor, rows_NH: torch.Tensor, out_PH: torch.Tensor) -> None:
    place_Q = (source_P < 0).nonzero().squeeze(1)
    row_Q = ~source_P.index_select(0, place_Q)
    out_PH.index_copy_(0, place_Q, rows_NH.index_select(0, row_Q).to(out_PH.dtype))


def _sum_rows(source_X: torch.Tensor, grad_XH: torch.Tensor, ctx: Any) -> torch.Tensor:
    """Gradient of the soft rows (N, H): the sum over each row's positions, in fp32 at least."""
    H = grad_XH.shape[-1]
    source_P, grad_PH = source_X.reshape(-1), grad_XH.reshape(-1, H)
    summed = torch.promote_types(grad_XH.dtype, torch.float32)
    if ctx.triton_runs:
        out_NH = grad_PH.new_empty((ctx.num_rows, H), dtype=ctx.rows_dtype)
        sum_on_gpu(source_P, grad_PH, out_NH, summed)
        return out_NH
    place_Q = (source_P < 0).nonzero().squeeze(1)
    picked_QH = grad_PH.index_select(0, place_Q).to(summed)
    row_Q = ~source_P.index_select(0, place_Q)
    total_NH = picked_QH.new_zeros((ctx.num_rows, H)).index_add_(0, row_Q, picked_QH)
    return total_NH.to(ctx.rows_dtype)


def _whole_table(table: torch.Tensor | nn.Module) -> torch.Tensor | None:
    """The (V, H) table where it may be read directly; None where the module has to be called."""
    if isinstance(table, torch.Tensor):
        return table
    plain = (
        isinstance(table, nn.Embedding)
        and type(table).forward is nn.Embedding.forward
        and "forward" not in vars(table)
        and not (table._forward_hooks or table._forward_pre_hooks)
        and not (table._backward_hooks or table._backward_pre_hooks)
        and not (table.max_norm or table.sparse or table.scale_grad_by_freq)
        and type(table.weight) is nn.Parameter
        and not hasattr(table.weight, "ds_id")  # ZeRO-3 gathers it only while the module runs
    )
    return table.weight if plain else None  # type: ignore[return-value]


def _num_embeddings(module: nn.Module) -> int:
    for name in ("num_embeddings", "vocab_size"):
        if isinstance(getattr(module, name, None), int):
            return int(getattr(module, name))
    name = type(module).__name__
    raise ValueError(f"table: {name} must say how many rows the whole table has, set its num_embeddings.")


def _is_ours(embedded_XH: torch.Tensor) -> bool:
    """Whether a module's result may be written to: nothing else shares it, as far as autograd knows."""
    leaf = embedded_XH.is_leaf and embedded_XH.requires_grad
    return embedded_XH.is_contiguous() and not leaf and not embedded_XH._is_view()


def _triton_runs(backend: Backend | None, source_X: torch.Tensor) -> bool:
    if backend not in (None, "reference", "triton"):
        raise ValueError(f'backend: {backend!r}, must be "reference", "triton" or None, leave it out.')
    if backend == "triton" and not runs_on(source_X.device):
        raise ValueError(f'backend: "triton" on {source_X.device}, needs tensors on a GPU, leave it out.')
    return source_X.device.type == "cuda" if backend is None else backend == "triton"


def _require_rows(rows_NH: torch.Tensor, source_X: torch.Tensor) -> None:
    shape = tuple(rows_NH.shape)
    if len(shape) != 2 or not rows_NH.is_floating_point():
        raise ValueError(
            f"soft_rows: {rows_NH.dtype} {shape}, must be floating and (rows, width), reshape it."
        )
    if rows_NH.device != source_X.device:
        raise ValueError(f"soft_rows: on {rows_NH.device}, must be on source's {source_X.device}, move it.")


def _require_same(name: str, table: torch.Tensor, rows_NH: torch.Tensor, lead: tuple[int, ...]) -> None:
    """Dtype, shape (*lead, width) and device of the table or of a module's result."""
    shape, width = tuple(table.shape), rows_NH.shape[1]
    if len(shape) != len(lead) + 1 or shape[:-1] != lead or not table.is_floating_point():
        remedy = "pass the embedding module, also where its table is partitioned"
        raise ValueError(f"{name}: {table.dtype} {shape}, must be floating and (*{lead}, width), {remedy}.")
    if shape[-1] != width:
        remedy = "pass the projection that makes it so"
        raise ValueError(f"soft_rows: width {width}, must be {name}'s {shape[-1]}, {remedy}.")
    if table.device != rows_NH.device:
        raise ValueError(f"{name}: on {table.device}, must be on soft_rows' {rows_NH.device}, move it.")


def _require_ids(source_X: torch.Tensor, num_ids: int, num_rows: int) -> None:
    remedy = f"the table has {num_ids} ids and there are {num_rows} soft rows (-1 is the first)"
    require_range("source", source_X, -num_rows, num_ids, remedy)
