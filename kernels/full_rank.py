"""Ranking of the whole catalogue for each user, in tiles of items: no users x items matrix.

Shape legend:
    N users, B users of a block, I items, D width, K places of the list, P items seen by all users together
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recloom.kernels.catalog_softmax import (
    check_finite,
    check_matrices,
    check_range,
    check_targets,
    check_triton,
    keys_of,
    require,
    row_norms,
)
from recloom.kernels.catalog_softmax_gpu import fits
from recloom.kernels.full_rank_cpu import Lists, rank_on_cpu
from recloom.kernels.full_rank_gpu import rank_on_gpu

BACKENDS = ("triton", "numba", "reference")
REFERENCE_BLOCK = 64


class Ranking(NamedTuple):
    """The best unseen items of each user, and where the target would stand."""

    top_items_NK: Tensor
    top_scores_NK: Tensor
    target_ranks_N: Tensor | None


class _Seen(NamedTuple):
    """Items to leave out, sorted within each user; keys are user * I + item, so they rise throughout."""

    offsets_N1: Tensor
    items_P: Tensor
    keys_P: Tensor


def full_rank(
    users_ND: Tensor,
    items_ID: Tensor,
    k: int,
    seen: tuple[Tensor, Tensor] | None = None,
    targets_N: Tensor | None = None,
    cosine: bool = False,
    backend: str | None = None,
) -> Ranking:
    """The k best unseen items of each user by dot product or cosine, and the rank of each user's target.

    Args:
        users_ND, items_ID: float64, float32, bfloat16 or float16, on one device.
        k: length of the lists, at least 1.
        seen: offsets_N1 and items_P, both int64: for user n items_P[offsets_N1[n] : offsets_N1[n + 1]] are
            left out; they need not be sorted and may repeat.
        targets_N: int64, the item of each user whose rank is asked.
        cosine: normalise both sides, zero rows as `torch.nn.functional.normalize` does.
        backend: "triton" (D <= 256; a bfloat16 catalogue is multiplied in bfloat16), "numba" (CPU),
            "reference" (plain torch); None picks by device.

    Returns: items (int64) by falling score, equal scores by rising id, and their scores (float32, or float64
        where an input is); -1 and -inf where fewer than k are unseen. Ranks (int64) count from 0 and are
        pessimistic: the number of unseen items other than the target that score at least as much; I where the
        target itself is seen. With "triton" scores in the list may differ from those behind the ranks in the
        last bit.
    Raises ValueError for shapes, types, ids out of range and values that are not finite; on a GPU ids and
    values are asserted on the device, without a wait.
    """
    _check_arguments(users_ND, items_ID, k, targets_N, backend)
    wide = torch.promote_types(torch.promote_types(users_ND.dtype, items_ID.dtype), torch.float32)
    chosen = backend or _backend(items_ID, wide)
    _check_fit(chosen, items_ID, wide)
    with torch.no_grad():
        norms_I = row_norms(items_ID, wide)
        # Norms whose squares are finite bound every sum in a product, so scores are finite too.
        check_finite(row_norms(users_ND, wide), norms_I)
        if targets_N is not None:
            check_range(targets_N, len(items_ID))
        lists = _sorted_seen(seen, len(users_ND), len(items_ID), users_ND.device)
        queries_ND = F.normalize(users_ND.to(wide), dim=1) if cosine else users_ND.to(wide)
        rank = {"triton": rank_on_gpu, "numba": rank_on_cpu, "reference": _reference_rank}[chosen]
        return _joined(rank(queries_ND, items_ID, norms_I, k, lists, targets_N, cosine), k)


def _reference_rank(
    queries_ND: Tensor,
    items_ID: Tensor,
    norms_I: Tensor,
    k: int,
    seen: _Seen,
    targets_N: Tensor | None,
    cosine: bool,
) -> list[Lists]:
    """Blocks of users against all items; a stable sort, so that equal scores stay in the order of ids."""
    keys_ID = keys_of(items_ID, norms_I, cosine)
    parts = []
    for start in range(0, len(queries_ND), REFERENCE_BLOCK):
        block = slice(start, start + REFERENCE_BLOCK)
        scores_BI = queries_ND[block] @ keys_ID.T
        bounds_B1 = seen.offsets_N1[start : start + len(scores_BI) + 1]
        rows_P = torch.arange(len(scores_BI), device=bounds_B1.device).repeat_interleave(bounds_B1.diff())
        scores_BI[rows_P, seen.items_P[bounds_B1[0] : bounds_B1[-1]]] = -math.inf
        parts.append(_reference_block(scores_BI, k, None if targets_N is None else targets_N[block]))
    return parts


def _reference_block(scores_BI: Tensor, k: int, targets_B: Tensor | None) -> Lists:
    sorted_BI, order_BI = scores_BI.sort(dim=1, descending=True, stable=True)
    top_scores_BK, top_items_BK = sorted_BI[:, :k], order_BI[:, :k]
    top_items_BK = top_items_BK.masked_fill(top_scores_BK == -math.inf, -1)
    if targets_B is None:
        return top_items_BK, top_scores_BK, None
    bar_B1 = scores_BI.gather(1, targets_B[:, None])
    ranks_B = (scores_BI >= bar_B1).sum(1) - 1
    ranks_B = ranks_B.masked_fill(bar_B1[:, 0] == -math.inf, scores_BI.shape[1])
    return top_items_BK, top_scores_BK, ranks_B


def _joined(parts: list[Lists], k: int) -> Ranking:
    """All users; lists shorter than k are filled up."""
    items, scores, some_ranks = zip(*parts, strict=True)
    items_NK, scores_NK = torch.cat(items), torch.cat(scores)
    missing = k - items_NK.shape[1]
    ranks = [ranks_B for ranks_B in some_ranks if ranks_B is not None]
    return Ranking(
        F.pad(items_NK, (0, missing), value=-1),
        F.pad(scores_NK, (0, missing), value=-math.inf),
        torch.cat(ranks) if ranks else None,
    )


def _sorted_seen(seen: tuple[Tensor, Tensor] | None, users: int, items: int, device: torch.device) -> _Seen:
    if seen is None:
        nothing_P = torch.zeros(0, dtype=torch.int64, device=device)
        return _Seen(torch.zeros(users + 1, dtype=torch.int64, device=device), nothing_P, nothing_P)
    offsets_N1, items_P = seen
    _check_seen(offsets_N1, items_P, users, items)
    rows_P = torch.arange(users, device=device).repeat_interleave(offsets_N1.diff(), output_size=len(items_P))
    keys_P = rows_P * items + items_P
    if keys_P.is_cuda or bool((keys_P.diff() < 0).any()):
        keys_P = keys_P.sort().values
    return _Seen(offsets_N1.contiguous(), keys_P - rows_P * items, keys_P)


def _check_seen(offsets_N1: Tensor, items_P: Tensor, users: int, items: int) -> None:
    for name, tensor in (("offsets", offsets_N1), ("items", items_P)):
        if tensor.dtype != torch.int64 or tensor.dim() != 1:
            raise ValueError(
                f"seen holds {name} of {tensor.dtype} and shape {list(tensor.shape)}: both must be int64 "
                "vectors; convert them with .long()"
            )
    if len(offsets_N1) != users + 1:
        raise ValueError(
            f"seen holds {len(offsets_N1)} offsets for {users} users: it must be one more than "
            "users; append the end"
        )
    rising_N = offsets_N1.diff() >= 0
    require(rising_N, "seen holds offsets that fall: each must be at least the one before; pass CSR offsets")
    ends = torch.stack([offsets_N1[0] == 0, offsets_N1[-1] == len(items_P)])
    require(
        ends, "seen holds offsets that do not go from 0 to the number of items: they must; pass CSR offsets"
    )
    inside_P = (items_P >= 0) & (items_P < items)
    require(
        inside_P, f"seen holds an item outside 0..{items - 1}: all must be rows of items_ID; map ids to rows"
    )


def _check_arguments(
    users_ND: Tensor, items_ID: Tensor, k: int, targets_N: Tensor | None, backend: str | None
) -> None:
    check_matrices(users_ND, items_ID)
    if targets_N is not None:
        check_targets(targets_N, users_ND)
    if k < 1:
        raise ValueError(f"k is {k}: it must be at least 1; pass the length of the list")
    if backend is not None and backend not in BACKENDS:
        raise ValueError(
            f"backend is {backend!r}: it must be one of {BACKENDS}; pass None to choose by the device"
        )


def _backend(items_ID: Tensor, wide: torch.dtype) -> str:
    if not items_ID.is_cuda:
        return "numba"
    return "triton" if fits(items_ID, wide) else "reference"


def _check_fit(backend: str, items_ID: Tensor, wide: torch.dtype) -> None:
    if backend == "triton":
        check_triton(items_ID, wide, "reference")
    if backend == "numba" and items_ID.is_cuda:
        raise ValueError(f"backend is 'numba' on {items_ID.device}: it runs on a CPU; pass 'triton' or None")
