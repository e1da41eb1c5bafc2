"""Soft tokens on a GPU: one Triton kernel writes each position once, one sums the soft rows' gradient.

Shapes: P positions of the batch, H hidden width, V rows of the table, N soft rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# A program of the forward copies up to 8 KiB at bf16; one of the backward sums as many elements at once.
ROW_BLOCK = 4096
SUM_BLOCK, SUM_POSITIONS = 512, 8


def runs_on(device: torch.device) -> bool:
    """Also on a CPU where Triton interprets."""
    return device.type == "cuda" or not isinstance(gather_kernel, triton.JITFunction)


def gather_on_gpu(
    source_P: torch.Tensor, table_VH: torch.Tensor | None, rows_NH: torch.Tensor, out_PH: torch.Tensor
) -> None:
    """Write all positions of `out_PH`, or only the soft ones where there is no table."""
    P, H = out_PH.shape
    if not P * H:
        return
    overlay = table_VH is None
    read_VH = out_PH if table_VH is None else table_VH
    block = min(triton.next_power_of_2(H), ROW_BLOCK)
    launch = gather_kernel[(P, triton.cdiv(H, block))]
    launch(source_P, read_VH, rows_NH, out_PH, H, *read_VH.stride(), *rows_NH.stride(), overlay, block)


def sum_on_gpu(
    source_P: torch.Tensor, grad_PH: torch.Tensor, out_NH: torch.Tensor, summed: torch.dtype
) -> None:
    """Sort the positions by soft row, stably, and sum each row's in that order."""
    N, H = out_NH.shape
    if not N * H:
        return
    row_P = (~source_P).masked_fill(source_P >= 0, N).to(torch.int32)
    sorted_P, order_P = torch.sort(row_P, stable=True)
    bounds = torch.arange(N + 1, dtype=torch.int32, device=row_P.device)
    start_N1 = torch.searchsorted(sorted_P, bounds)
    block = min(triton.next_power_of_2(H), SUM_BLOCK)
    launch = sum_kernel[(N, triton.cdiv(H, block))]
    double = summed == torch.float64
    launch(grad_PH, order_P, start_N1, out_NH, H, *grad_PH.stride(), double, SUM_POSITIONS, block)


@triton.jit
def gather_kernel(
    source_ptr, table_ptr, rows_ptr, out_ptr, H, table_stride, table_step, rows_stride, rows_step,
    OVERLAY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One position and a block of columns: its row of the table, or soft row; only the latter to overlay."""
    position = tl.program_id(0).to(tl.int64)  # times H exceeds 32 bits
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < H
    out = out_ptr + position * H + column
    value = tl.load(source_ptr + position)
    if value < 0:
        soft = tl.load(rows_ptr + (-1 - value) * rows_stride + column * rows_step, mask=inside)
        tl.store(out, soft.to(out_ptr.dtype.element_ty), mask=inside)
    elif not OVERLAY:
        token = tl.load(table_ptr + value * table_stride + column * table_step, mask=inside)
        tl.store(out, token, mask=inside)


@triton.jit
def sum_kernel(
    grad_ptr, order_ptr, start_ptr, out_ptr, H, grad_stride, grad_step,
    DOUBLE: tl.constexpr, POSITIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One soft row and a block of columns: the sum of the gradient over the row's positions, in order."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    summed = tl.float64 if DOUBLE else tl.float32
    start = tl.load(start_ptr + row)
    end = tl.load(start_ptr + row + 1)
    total = tl.full((BLOCK,), 0.0, dtype=summed)
    for first in range(start, end, POSITIONS):
        for place in tl.static_range(POSITIONS):  # unrolled: the loads overlap, the sum keeps its order
            held = first + place < end
            position = tl.load(order_ptr + first + place, mask=held, other=0)
            grad = grad_ptr + position * grad_stride + column * grad_step
            total += tl.load(grad, mask=column < tl.where(held, H, 0), other=0.0).to(summed)
    tl.store(out_ptr + row * H + column, total.to(out_ptr.dtype.element_ty), mask=column < H)
