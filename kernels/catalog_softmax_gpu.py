"""The contrastive loss on a GPU: a Triton kernel for its sums and the users' gradient, one for the items'.

Shape legend:
    N users, I items, T items of a tile, D width, S shares of the catalogue
Factors are the queries to base 2, as in `catalog_softmax.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

EPS = 1e-12
KERNEL_EPS = tl.constexpr(EPS)
MAX_WIDTH = 256
PROGRAMS_PER_PROCESSOR = 2
LAUNCH = {"num_warps": 8, "num_stages": 2}


def fits(items_ID: Tensor, wide: torch.dtype) -> bool:
    return items_ID.shape[1] <= MAX_WIDTH and wide != torch.float64


def dot_dtype(items_ID: Tensor) -> torch.dtype:
    """Half is multiplied as float32: 1 / norm may leave its range."""
    return torch.bfloat16 if items_ID.dtype == torch.bfloat16 else torch.float32


def dot_precision() -> str:
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def constants_of(factors_ND: Tensor, cosine: bool) -> dict[str, Any]:
    """Block sizes that fit the registers and shared memory of sm_80 and sm_90."""
    wide = factors_ND.shape[1] > 128
    small = factors_ND.dtype == torch.float32
    return {
        "COSINE": cosine,
        "WIDTH": factors_ND.shape[1],
        "PRECISION": dot_precision(),
        "BLOCK_N": 32 if wide and small else 64 if wide or small else 128,
        "BLOCK_T": 32 if wide or small else 64,
        "BLOCK_D": max(16, triton.next_power_of_2(factors_ND.shape[1])),
    }


def share_of(blocks: int, items: int, tile: int, device: torch.device) -> int:
    """Items a program goes over, such that blocks of users times shares of the catalogue fill the device."""
    processors = (
        torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    )
    shares = triton.cdiv(PROGRAMS_PER_PROCESSOR * processors, blocks)
    return int(tile * triton.cdiv(items, tile * shares))


def forward_on_gpu(
    factors_ND: Tensor, items_ID: Tensor, norms_I: Tensor, cosine: bool, expect: bool
) -> tuple[Tensor, Tensor]:
    """log2 of the sum of exp2 of the logits; the keys' mean under the softmax (zeros unless `expect`)."""
    (users, width), items = factors_ND.shape, len(items_ID)
    constants = constants_of(factors_ND, cosine)
    blocks = triton.cdiv(users, constants["BLOCK_N"])
    share = share_of(blocks, items, constants["BLOCK_T"], items_ID.device)
    S = triton.cdiv(items, share)
    peak_SN, mass_SN = norms_I.new_empty(S, users), norms_I.new_empty(S, users)
    expected_SND = norms_I.new_empty((S, users, width) if expect else (0,))
    forward_kernel[(blocks, S)](
        factors_ND, items_ID, norms_I, peak_SN, mass_SN, expected_SND,
        users, items, share, EXPECT=expect, **constants, **LAUNCH,
    )  # fmt: skip
    peak_N = peak_SN.amax(0)
    weights_SN = torch.exp2(peak_SN - peak_N)
    mass_N = (mass_SN * weights_SN).sum(0)
    log_mass_N = mass_N.log2() + peak_N
    if not expect:
        return log_mass_N, norms_I.new_zeros(users, width)
    return log_mass_N, torch.einsum("sn,snd->nd", weights_SN, expected_SND) / mass_N[:, None]


def items_grad_on_gpu(
    factors_ND: Tensor,
    items_ID: Tensor,
    targets_N: Tensor,
    norms_I: Tensor,
    log_mass_N: Tensor,
    grad_N: Tensor,
    cosine: bool,
) -> Tensor:
    users, items = len(factors_ND), len(items_ID)
    grad_items_ID = torch.empty_like(items_ID)
    constants = constants_of(factors_ND, cosine)
    items_grad_kernel[(triton.cdiv(items, constants["BLOCK_T"]),)](
        factors_ND, items_ID, targets_N, norms_I, log_mass_N, grad_N, grad_items_ID,
        users, items, **constants, **LAUNCH,
    )  # fmt: skip
    return grad_items_ID


@triton.jit
def load_rows(rows_ND, rows, count, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    dims = tl.arange(0, BLOCK_D)
    inside = (rows < count)[:, None] & (dims < WIDTH)[None, :]
    return tl.load(rows_ND + rows.to(tl.int64)[:, None] * WIDTH + dims[None, :], mask=inside, other=0.0)


@triton.jit
def load_scales(norms_I, items, n_items, COSINE: tl.constexpr):
    """What turns an item into its key; 0 outside the catalogue."""
    norms = tl.load(norms_I + items, mask=items < n_items, other=1.0)
    scales = 1.0 / tl.maximum(norms, KERNEL_EPS) if COSINE else tl.full(norms.shape, 1.0, tl.float32)
    return tl.where(items < n_items, scales, 0.0)


@triton.jit
def forward_kernel(
    factors_ND, items_ID, norms_I, peak_SN, mass_SN, expected_SND, n_users, n_items, share,
    COSINE: tl.constexpr, EXPECT: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A block of users against a share of the catalogue: softmax with running maximum, and expected key."""
    users = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * share
    factors = load_rows(factors_ND, users, n_users, WIDTH, BLOCK_D)
    peak = tl.full([BLOCK_N], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_N], tl.float32)
    expected = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(first, tl.minimum(first + share, n_items), BLOCK_T):
        items = start + tl.arange(0, BLOCK_T)
        tile = load_rows(items_ID, items, n_items, WIDTH, BLOCK_D).to(factors.dtype)
        scales = load_scales(norms_I, items, n_items, COSINE)
        logits = tl.dot(factors, tl.trans(tile), input_precision=PRECISION) * scales[None, :]
        logits = tl.where((items < n_items)[None, :], logits, float("-inf"))
        top = tl.maximum(peak, tl.max(logits, 1))
        weights = tl.exp2(logits - top[:, None])
        decay = tl.exp2(peak - top)
        mass = mass * decay + tl.sum(weights, 1)
        if EXPECT:
            weights = (weights * scales[None, :]).to(tile.dtype)
            expected = tl.dot(weights, tile, expected * decay[:, None], input_precision=PRECISION)
        peak = top
    places = tl.program_id(1) * n_users + users
    tl.store(peak_SN + places, peak, mask=users < n_users)
    tl.store(mass_SN + places, mass, mask=users < n_users)
    if EXPECT:
        dims = tl.arange(0, BLOCK_D)
        inside = (users < n_users)[:, None] & (dims < WIDTH)[None, :]
        tl.store(expected_SND + places.to(tl.int64)[:, None] * WIDTH + dims[None, :], expected, mask=inside)


@triton.jit
def items_grad_kernel(
    factors_ND, items_ID, targets_N, norms_I, log_mass_N, grad_N, grad_items_ID, n_users, n_items,
    COSINE: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of items, over all users."""
    items = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    tile = load_rows(items_ID, items, n_items, WIDTH, BLOCK_D)
    scales = load_scales(norms_I, items, n_items, COSINE)
    grad = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for start in range(0, n_users, BLOCK_N):
        users = start + tl.arange(0, BLOCK_N)
        factors = load_rows(factors_ND, users, n_users, WIDTH, BLOCK_D)
        log_mass = tl.load(log_mass_N + users, mask=users < n_users, other=0.0)
        slope = tl.load(grad_N + users, mask=users < n_users, other=0.0)
        target = tl.load(targets_N + users, mask=users < n_users, other=-1)
        logits = (
            tl.dot(tile.to(factors.dtype), tl.trans(factors), input_precision=PRECISION) * scales[:, None]
        )
        shares = tl.exp2(logits - log_mass[None, :])
        shares = tl.where(items[:, None] == target[None, :], shares - 1.0, shares) * slope[None, :]
        grad = tl.dot(shares.to(factors.dtype), factors, grad, input_precision=PRECISION)
    if COSINE:
        keys = tile.to(tl.float32) * scales[:, None]
        # A norm below EPS is a constant divisor: nothing of the gradient lies along it.
        along = tl.where(scales * KERNEL_EPS < 1.0, tl.sum(keys * grad, 1), 0.0)
        grad = (grad - keys * along[:, None]) * scales[:, None]
    dims = tl.arange(0, BLOCK_D)
    inside = (items < n_items)[:, None] & (dims < WIDTH)[None, :]
    places = items.to(tl.int64)[:, None] * WIDTH + dims[None, :]
    tl.store(grad_items_ID + places, grad.to(grad_items_ID.dtype.element_ty), mask=inside)
