"""Contrastive loss of users against the whole catalogue, exact, without a users x items matrix.

Shape legend:
    N users, B users of a block, I items, T items of a tile, D width
Queries are the users as the logits need them: normalised if cosine, divided by the temperature. Keys are the
items as they need them. Inside, logits are to base 2, because exp2 is several times faster than exp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recloom.kernels.catalog_softmax_gpu import (
    EPS,
    MAX_WIDTH,
    dot_dtype,
    fits,
    forward_on_gpu,
    items_grad_on_gpu,
)

BACKENDS = ("triton", "torch", "reference")
REDUCTIONS = ("mean", "sum", "none")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TILE_ELEMENTS = 1 << 18
USER_BLOCK = 1024
# So few softmax weights are kept for the items' gradient: a product less, and 16 MiB of float64 at most.
KEPT_ELEMENTS = 1 << 21
# exp2(60) and exp2(-60), times or over any count of items, are far from the ends of fp32.
SAFE_LOGIT = 60.0


def catalog_softmax(
    users_ND: Tensor,
    items_ID: Tensor,
    targets_N: Tensor,
    temperature: float,
    cosine: bool = True,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """-log softmax of each user's target among all items, over logits cos(user, item) / temperature.

    Equation (8) of Laser with the whole catalogue as negatives. Running maximum and sum as in Milakov and
    Gimelshein 2018; the expected item is carried along as in FlashAttention (Dao 2022) with items as keys and
    values, so the users' gradient is known after the forward pass; items' gradient by recomputed tiles as in
    Cut Cross-Entropy (Wijmans et al. 2024), in a second pass that only items that require gradient cost.

    Args:
        users_ND, items_ID: float64, float32, bfloat16 or float16, on one device. Zero rows are normalised as
            `torch.nn.functional.normalize` does it.
        targets_N: int64, the item of each user.
        temperature: above 0.
        cosine: False takes dot products as they are.
        reduction: "mean", "sum" or "none" (N losses).
        backend: "triton" (D <= 256; a bfloat16 catalogue is multiplied in bfloat16), "torch" (tiles),
            "reference" (keeps users x items); None picks by device.

    Returns: the loss in float32, or float64 where an input is; not differentiable twice.
    Raises ValueError for shapes, types, ids out of range and values that are not finite; on a GPU ids and
    values are asserted on the device, without a wait.
    """
    check_matrices(users_ND, items_ID)
    check_targets(targets_N, users_ND)
    _check_options(temperature, reduction, backend)
    wide = torch.promote_types(torch.promote_types(users_ND.dtype, items_ID.dtype), torch.float32)
    chosen = backend or _backend(items_ID, wide)
    if chosen == "triton":
        check_triton(items_ID, wide, "torch")
    norms_I = row_norms(items_ID.detach(), wide)
    check_finite(row_norms(users_ND.detach(), wide), norms_I)
    check_range(targets_N, len(items_ID))
    queries_ND = users_ND.to(wide)
    queries_ND = (F.normalize(queries_ND, dim=1) if cosine else queries_ND) / temperature
    if chosen == "reference":
        losses_N = _eager_losses(queries_ND, items_ID.to(wide), targets_N, cosine)
    else:
        expect = torch.is_grad_enabled() and queries_ND.requires_grad
        losses_N = _CatalogSoftmax.apply(
            queries_ND, items_ID, targets_N, norms_I, cosine, chosen == "triton", expect
        )
    if reduction == "none":
        return losses_N
    return losses_N.mean() if reduction == "mean" else losses_N.sum()


def _eager_losses(queries_ND: Tensor, items_ID: Tensor, targets_N: Tensor, cosine: bool) -> Tensor:
    keys_ID = F.normalize(items_ID, dim=1) if cosine else items_ID
    return F.cross_entropy(queries_ND @ keys_ID.T, targets_N, reduction="none")


class _CatalogSoftmax(torch.autograd.Function):
    """Losses of the users; gradient to queries always, to items where they require it."""

    @staticmethod
    def forward(
        ctx: Any,
        queries_ND: Tensor,
        items_ID: Tensor,
        targets_N: Tensor,
        norms_I: Tensor,
        cosine: bool,
        use_triton: bool,
        expect: bool,
    ) -> Tensor:
        factors_ND = queries_ND / math.log(2)
        if use_triton:
            # Rounded once, the same for both passes: else the recomputed softmax would not sum to 1.
            factors_ND = factors_ND.to(dot_dtype(items_ID))
        few = not use_triton and ctx.needs_input_grad[1] and len(queries_ND) * len(items_ID) <= KEPT_ELEMENTS
        sweep = _kept_forward if few else forward_on_gpu if use_triton else _tiled_forward
        log_mass_N, slope_ND, *shares = sweep(factors_ND, items_ID, norms_I, cosine, expect)
        targets_ND = keys_of(items_ID[targets_N], norms_I[targets_N], cosine)
        losses_N = (log_mass_N - (factors_ND.to(targets_ND.dtype) * targets_ND).sum(1)) * math.log(2)
        needed_later = (
            [factors_ND, items_ID, targets_N, norms_I, *(shares or [log_mass_N])]
            if ctx.needs_input_grad[1]
            else []
        )
        ctx.save_for_backward(slope_ND.sub_(targets_ND), *needed_later)
        ctx.cosine = cosine
        ctx.items_grad = _kept_items_grad if few else items_grad_on_gpu if use_triton else _tiled_items_grad
        return losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        slope_ND, *needed_later = ctx.saved_tensors
        grad_queries_ND = slope_ND * grad_N[:, None] if ctx.needs_input_grad[0] else None
        grad_items_ID = None
        if needed_later:
            grad_items_ID = ctx.items_grad(*needed_later, grad_N * math.log(2), ctx.cosine)
        return grad_queries_ND, grad_items_ID, None, None, None, None, None


def keys_of(items_TD: Tensor, norms_T: Tensor, cosine: bool) -> Tensor:
    """Items as the logits need them, in the type of the norms."""
    keys_TD = items_TD.to(norms_T.dtype)
    return keys_TD / norms_T.clamp_min(EPS)[:, None] if cosine else keys_TD


def _tiles(items_ID: Tensor, norms_I: Tensor, users: int, cosine: bool) -> Iterator[tuple[int, Tensor]]:
    """First item and keys_TD of each tile; so many that a tile's logits stay in the cache."""
    size = max(1, TILE_ELEMENTS // users)
    for start in range(0, len(items_ID), size):
        tile = slice(start, start + size)
        yield start, keys_of(items_ID[tile], norms_I[tile], cosine)


def product(left_XD: Tensor, right_YD: Tensor, scratch: Tensor) -> Tensor:
    shape = (len(left_XD), len(right_YD))
    return torch.mm(left_XD, right_YD.T, out=scratch[: shape[0] * shape[1]].view(shape))


def _is_safe(factors_ND: Tensor, norms_I: Tensor, cosine: bool) -> bool:
    """Whether exp2(logit) needs no shift, as |q . k| <= |q| |k|: saves two sweeps over each tile."""
    longest = factors_ND.norm(dim=1).max() * (1.0 if cosine else norms_I.max())
    return bool(longest <= SAFE_LOGIT)


def _tiled_forward(
    factors_ND: Tensor, items_ID: Tensor, norms_I: Tensor, cosine: bool, expect: bool
) -> tuple[Tensor, Tensor]:
    """log2 of the sum of exp2 of the logits; the keys' mean under the softmax (zeros unless `expect`)."""
    log_mass_N, expected_ND = factors_ND.new_empty(len(factors_ND)), torch.zeros_like(factors_ND)
    scratch = factors_ND.new_empty(max(TILE_ELEMENTS, USER_BLOCK))
    safe = _is_safe(factors_ND, norms_I, cosine)
    for start in range(0, len(factors_ND), USER_BLOCK):
        block = slice(start, start + USER_BLOCK)
        factors_BD, expected_BD = factors_ND[block], expected_ND[block] if expect else None
        sweep = _plain_sweep if safe else _shifted_sweep
        mass_B, peak_B = sweep(
            factors_BD, _tiles(items_ID, norms_I, len(factors_BD), cosine), expected_BD, scratch
        )
        expected_ND[block] /= mass_B[:, None]
        log_mass_N[block] = mass_B.log2() + peak_B
    return log_mass_N, expected_ND


def _plain_sweep(
    factors_BD: Tensor, tiles: Iterator[tuple[int, Tensor]], expected_BD: Tensor | None, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of exp2(logit) and the shift, 0; adds exp2(logit) times key to `expected_BD`."""
    mass_B = factors_BD.new_zeros(len(factors_BD))
    for _, keys_TD in tiles:
        weights_BT = product(factors_BD, keys_TD, scratch).exp2_()
        mass_B += weights_BT.sum(1)
        if expected_BD is not None:
            expected_BD.addmm_(weights_BT, keys_TD)
    return mass_B, torch.zeros_like(mass_B)


def _shifted_sweep(
    factors_BD: Tensor, tiles: Iterator[tuple[int, Tensor]], expected_BD: Tensor | None, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """The same under a running maximum, which is the shift that comes back."""
    mass_B = factors_BD.new_zeros(len(factors_BD))
    peak_B = torch.full_like(mass_B, -math.inf)
    for _, keys_TD in tiles:
        logits_BT = product(factors_BD, keys_TD, scratch)
        top_B = torch.maximum(peak_B, logits_BT.amax(1))
        decay_B, peak_B = (peak_B - top_B).exp2_(), top_B
        weights_BT = logits_BT.sub_(top_B[:, None]).exp2_()
        mass_B = mass_B * decay_B + weights_BT.sum(1)
        if expected_BD is not None:
            expected_BD.mul_(decay_B[:, None]).addmm_(weights_BT, keys_TD)
    return mass_B, peak_B


def _kept_forward(
    factors_ND: Tensor, items_ID: Tensor, norms_I: Tensor, cosine: bool, expect: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_tiled_forward`, for few users and items; and the softmax."""
    keys_ID = keys_of(items_ID, norms_I, cosine)
    shares_NI = factors_ND @ keys_ID.T
    peak_N = shares_NI.amax(1)
    mass_N = shares_NI.sub_(peak_N[:, None]).exp2_().sum(1)
    shares_NI.div_(mass_N[:, None])
    expected_ND = shares_NI @ keys_ID if expect else torch.zeros_like(factors_ND)
    return mass_N.log2().add_(peak_N), expected_ND, shares_NI


def _kept_items_grad(
    factors_ND: Tensor,
    items_ID: Tensor,
    targets_N: Tensor,
    norms_I: Tensor,
    shares_NI: Tensor,
    grad_N: Tensor,
    cosine: bool,
) -> Tensor:
    pulls_ND = factors_ND * grad_N[:, None]
    grad_ID = (shares_NI.T @ pulls_ND).index_add_(0, targets_N, pulls_ND, alpha=-1)
    if cosine:
        grad_ID = _through_norm(grad_ID, keys_of(items_ID, norms_I, cosine), norms_I)
    return grad_ID.to(items_ID.dtype)


def _tiled_items_grad(
    factors_ND: Tensor,
    items_ID: Tensor,
    targets_N: Tensor,
    norms_I: Tensor,
    log_mass_N: Tensor,
    grad_N: Tensor,
    cosine: bool,
) -> Tensor:
    """Gradient of the items, tile by tile, each rounded once to the items' type."""
    grad_items_ID = torch.empty_like(items_ID)
    pulls_ND = factors_ND * grad_N[:, None]
    safe = _is_safe(factors_ND, norms_I, cosine)
    # softmax = exp2(logit - shift) * exp2(shift - log_mass): with no shift the second factor joins the pulls
    pushes_ND = pulls_ND * torch.exp2(-log_mass_N)[:, None] if safe else pulls_ND
    shift_N = None if safe else log_mass_N
    order_N = targets_N.argsort(stable=True)
    users = min(len(factors_ND), USER_BLOCK)
    scratch = factors_ND.new_empty(max(TILE_ELEMENTS, USER_BLOCK))
    for start, keys_TD in _tiles(items_ID, norms_I, users, cosine):
        tile = slice(start, start + len(keys_TD))
        grad_TD = _pushes(factors_ND, pushes_ND, shift_N, keys_TD, scratch)
        bounds = torch.tensor([tile.start, tile.stop], device=targets_N.device)
        first, last = torch.searchsorted(targets_N, bounds, sorter=order_N).tolist()
        mine = order_N[first:last]
        grad_TD.index_add_(0, targets_N[mine] - start, pulls_ND[mine], alpha=-1)
        grad_items_ID[tile] = _through_norm(grad_TD, keys_TD, norms_I[tile]) if cosine else grad_TD
    return grad_items_ID


def _pushes(
    factors_ND: Tensor, pushes_ND: Tensor, shift_N: Tensor | None, keys_TD: Tensor, scratch: Tensor
) -> Tensor:
    """softmax^T @ pulls for a tile of items."""
    grad_TD = torch.zeros_like(keys_TD)
    for start in range(0, len(factors_ND), USER_BLOCK):
        block = slice(start, start + USER_BLOCK)
        logits_TB = product(keys_TD, factors_ND[block], scratch)
        if shift_N is not None:
            logits_TB.sub_(shift_N[block])
        grad_TD.addmm_(logits_TB.exp2_(), pushes_ND[block])
    return grad_TD


def _through_norm(grad_TD: Tensor, keys_TD: Tensor, norms_T: Tensor) -> Tensor:
    """Gradient of the items from that of the keys; a norm below EPS is no divisor, so it has no gradient."""
    inner_T = (grad_TD * keys_TD).sum(1) * (norms_T > EPS)
    return grad_TD.addcmul_(keys_TD, inner_T[:, None], value=-1).div_(norms_T.clamp_min(EPS)[:, None])


def row_norms(rows_ID: Tensor, dtype: torch.dtype) -> Tensor:
    """On a CPU in parts where the type differs, because there it copies what it converts."""
    size = max(1, TILE_ELEMENTS // rows_ID.shape[1])
    whole = rows_ID.is_cuda or rows_ID.dtype == dtype
    parts = [rows_ID] if whole else rows_ID.split(size)
    return torch.cat([torch.linalg.vector_norm(part_TD, dim=1, dtype=dtype) for part_TD in parts])


def check_matrices(users_ND: Tensor, items_ID: Tensor) -> None:
    for name, tensor in (("users_ND", users_ND), ("items_ID", items_ID)):
        if tensor.dim() != 2 or 0 in tensor.shape or tensor.dtype not in FLOATS:
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {list(tensor.shape)}: it must be a float matrix of at "
                "least one row and column; pass one row a user or item"
            )
    if users_ND.shape[1] != items_ID.shape[1]:
        raise ValueError(
            f"items_ID has {items_ID.shape[1]} columns and users_ND {users_ND.shape[1]}: both must have "
            "the same width; project one of them"
        )
    if users_ND.device != items_ID.device:
        raise ValueError(
            f"items_ID is on {items_ID.device} and users_ND on {users_ND.device}: both must share a "
            "device; move one with .to(device)"
        )


def check_targets(targets_N: Tensor, users_ND: Tensor) -> None:
    if targets_N.dtype != torch.int64 or targets_N.shape != users_ND.shape[:1]:
        raise ValueError(
            f"targets_N is {targets_N.dtype} of shape {list(targets_N.shape)}: it must be int64 of shape "
            f"[{len(users_ND)}]; pass one item id a user"
        )
    if targets_N.device != users_ND.device:
        raise ValueError(
            f"targets_N is on {targets_N.device} and users_ND on {users_ND.device}: both must share a "
            "device; move one with .to(device)"
        )


def _check_options(temperature: float, reduction: str, backend: str | None) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"temperature is {temperature}: it must be a finite number above 0; pass for example 0.05"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}: it must be one of {REDUCTIONS}; pass one of these")
    if backend is not None and backend not in BACKENDS:
        raise ValueError(
            f"backend is {backend!r}: it must be one of {BACKENDS}; pass None to choose by the device"
        )


def _backend(items_ID: Tensor, wide: torch.dtype) -> str:
    return "triton" if items_ID.is_cuda and fits(items_ID, wide) else "torch"


def check_triton(items_ID: Tensor, wide: torch.dtype, instead: str) -> None:
    if not fits(items_ID, wide):
        raise ValueError(
            f"backend is 'triton' for {wide} of width {items_ID.shape[1]}: it takes up to float32 and width "
            f"{MAX_WIDTH}; pass backend={instead!r}"
        )


def check_finite(user_norms_N: Tensor, norms_I: Tensor) -> None:
    """A norm is finite only if its row is: N + I flags instead of a mask of the matrix."""
    for name, norms in (("users_ND", user_norms_N), ("items_ID", norms_I)):
        rule = f"{name} holds a row that is not finite or whose norm is not: all must be; find it by isfinite"
        require(torch.isfinite(norms), rule)


def check_range(targets_N: Tensor, items: int) -> None:
    inside_N = (targets_N >= 0) & (targets_N < items)
    require(
        inside_N,
        f"targets_N holds an id outside 0..{items - 1}: all must be rows of items_ID; map ids to rows",
    )


def require(flags: Tensor, message: str) -> None:
    """All flags hold; names the first that does not, except on a GPU, where looking would wait for it."""
    if flags.is_cuda:
        torch._assert_async(flags.all(), message)
    elif not flags.all():
        raise ValueError(f"{message} (position {int(flags.long().argmin())})")
