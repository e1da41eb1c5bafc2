"""Where soft tokens stand in a batch: sources, and soft rows inserted before and after each sample.

A *source* tensor says where each position's embedding comes from: a value >= 0 is a token id, a
value < 0 is soft row `-1 - value`, which is `~value`. `recloom.kernels.soft_tokens` reads it. All
here are tensor operations of known output shape, so nothing waits for a GPU.

Shapes: B rows of a padded batch, T their tokens (packed: tokens of all samples), S samples of a
packed row, L soft rows before a sample, K after it, U = T + L + K columns of the longer padded
batch, W = T + S (L + K) positions of the longer packed row, X any shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Padded:
    """A padded batch with soft rows around its samples.

    Fields:
        source_BU: token ids, and `-1 - row` at soft positions.
        mask_BU: 1 at real tokens and at soft rows, of the given mask's dtype.
        positions_BU: counted from 0 in each sample, 0 at padding.
        labels_BU: -100 at soft positions; None where none were given.
    """

    source_BU: torch.Tensor
    mask_BU: torch.Tensor
    positions_BU: torch.Tensor
    labels_BU: torch.Tensor | None


@dataclass(frozen=True)
class Packed:
    """A packed row with soft rows around its samples.

    Fields:
        source_W: token ids, and `-1 - row` at soft positions.
        cu_seqlens_S1: (S + 1,) where each sample starts, then W, of the given dtype. The longest
            sample has grown by L + K, so a maximum that the host knows stays known.
        positions_W: counted from 0 in each sample.
        labels_W: -100 at soft positions; None where none were given.
    """

    source_W: torch.Tensor
    cu_seqlens_S1: torch.Tensor
    positions_W: torch.Tensor
    labels_W: torch.Tensor | None


def mark(ids_X: torch.Tensor, slots_X: torch.Tensor) -> torch.Tensor:
    """Source of a batch whose placeholder tokens stand for soft rows (A-LLMRec section 3.2).

    Args:
        ids_X: int64 token ids; what stands at a soft position does not matter, but is no negative number.
        slots_X: int64, soft row of the position, -1 where the token itself is meant.

    Returns:
        source_X. Its upper bounds are checked by `soft_tokens`, which knows the table and the rows.

    Raises:
        ValueError: dtype, shape, an id below 0 or a slot below -1.
    """
    require_int64("ids", ids_X)
    require_int64("slots", slots_X)
    require_shape("slots", slots_X, tuple(ids_X.shape), "give one slot a token, -1 for none")
    require_range("ids", ids_X, 0, None, "pass token ids; soft positions are named by slots")
    require_range("slots", slots_X, -1, None, "use -1 for a position without soft row")
    return torch.where(slots_X >= 0, ~slots_X, ids_X)


def surround_padded(
    source_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    prefix: torch.Tensor | None = None,
    suffix: torch.Tensor | None = None,
    labels_BT: torch.Tensor | None = None,
    after: int = 0,
) -> Padded:
    """Insert soft rows before and after the real tokens of each row (Laser section 3.2).

    Padding stays on its side, left or right, and keeps its ids and labels; a row without real
    tokens counts as padded on the right.

    Args:
        source_BT: int64 token ids or a source (`mark`).
        mask_BT: bool or integer; 1 at real tokens, one run of them a row.
        prefix, suffix: int64 soft rows, (L,) shared by all samples or (B, L) one list a sample.
        labels_BT: int64 labels, moved along.
        after: first tokens of a sample that stay before its prefix; all of a shorter one's.

    Raises:
        ValueError: dtype, shape, a negative soft row, a mask that is no single run of ones.
    """
    require_int64("source", source_BT)
    require_ndim("source", source_BT, 2, "pass (rows, tokens); for a packed row call surround_packed")
    _require_mask(mask_BT, source_BT)
    B, T = source_BT.shape
    prefix_BL = _per_sample("prefix", prefix, B, source_BT)
    suffix_BK = _per_sample("suffix", suffix, B, source_BT)
    L, K = prefix_BL.shape[1], suffix_BK.shape[1]
    real_BT = mask_BT != 0
    length_B1 = real_BT.sum(1, keepdim=True)
    start_B1 = real_BT.long().argmax(1, keepdim=True) if T else length_B1
    column_U = torch.arange(T + L + K, device=source_BT.device)
    offset_BU = column_U - start_B1
    skip_B1 = length_B1.clamp(max=after)
    ended_BU = offset_BU >= length_B1 + (L + K)
    inside_BU = (offset_BU >= 0) & ~ended_BU
    # Of the columns [tokens | prefix | suffix] each is used once, so padding is moved, not made up.
    token_BU = column_U - (offset_BU >= skip_B1) * L - ended_BU * K
    origin_BU = _origin(offset_BU, skip_B1, length_B1, L, K, token_BU, T, T + L)
    source_BU = torch.cat([source_BT, ~prefix_BL, ~suffix_BK], 1).gather(1, origin_BU)
    positions_BU = offset_BU.masked_fill(~inside_BU, 0)
    labels_BU = _moved_labels(labels_BT, source_BT, L + K, origin_BU)
    return Padded(source_BU, inside_BU.to(mask_BT.dtype), positions_BU, labels_BU)


def surround_packed(
    source_T: torch.Tensor,
    cu_seqlens_S1: torch.Tensor,
    prefix: torch.Tensor | None = None,
    suffix: torch.Tensor | None = None,
    labels_T: torch.Tensor | None = None,
    after: int = 0,
) -> Packed:
    """Insert soft rows before and after each sample of a packed (varlen) row.

    Args:
        source_T: int64 token ids or a source (`mark`) of all samples, one after the other.
        cu_seqlens_S1: (S + 1,) int32 or int64, ascending from 0 to T; samples may be empty.
        prefix, suffix: int64 soft rows, (L,) shared by all samples or (S, L) one list a sample.
        labels_T: int64 labels, moved along.
        after: first tokens of a sample that stay before its prefix; all of a shorter one's.

    Raises:
        ValueError: dtype, shape, a negative soft row, boundaries that do not ascend from 0 to T.
    """
    require_int64("source", source_T)
    require_ndim("source", source_T, 1, "pass (tokens,); for a padded batch call surround_padded")
    _require_boundaries(cu_seqlens_S1, source_T)
    T, S = len(source_T), len(cu_seqlens_S1) - 1
    prefix_SL = _per_sample("prefix", prefix, S, source_T)
    suffix_SK = _per_sample("suffix", suffix, S, source_T)
    L, K = prefix_SL.shape[1], suffix_SK.shape[1]
    added_S1 = torch.arange(S + 1, device=source_T.device) * (L + K)
    longer_S1 = cu_seqlens_S1 + added_S1
    place_W = torch.arange(T + S * (L + K), device=source_T.device)
    sample_W = torch.searchsorted(longer_S1, place_W, right=True) - 1
    offset_W = place_W - longer_S1[sample_W]
    length_W = cu_seqlens_S1.diff()[sample_W]
    skip_W = length_W.clamp(max=after)
    token_W = place_W - added_S1[sample_W] - (offset_W >= skip_W) * L
    prefix_W, suffix_W = T + sample_W * L, T + S * L + sample_W * K
    origin_W = _origin(offset_W, skip_W, length_W, L, K, token_W, prefix_W, suffix_W)
    source_W = torch.cat([source_T, ~prefix_SL.flatten(), ~suffix_SK.flatten()]).gather(0, origin_W)
    labels_W = _moved_labels(labels_T, source_T, S * (L + K), origin_W)
    return Packed(source_W, longer_S1.to(cu_seqlens_S1.dtype), offset_W, labels_W)


def _origin(
    offset: torch.Tensor,
    skip: torch.Tensor,
    length: torch.Tensor,
    L: int,
    K: int,
    token: torch.Tensor,
    prefix: torch.Tensor | int,
    suffix: torch.Tensor | int,
) -> torch.Tensor:
    """Where a position at `offset` of its sample reads: its token, or its place in prefix or suffix."""
    behind = offset - L - length
    is_prefix = (offset >= skip) & (offset < skip + L)
    is_suffix = (behind >= 0) & (behind < K)
    return torch.where(is_prefix, prefix + offset - skip, torch.where(is_suffix, suffix + behind, token))


def _per_sample(name: str, soft: torch.Tensor | None, samples: int, source: torch.Tensor) -> torch.Tensor:
    """The soft rows of each sample, (samples, L); of width 0 where none are wanted."""
    if soft is None:
        return source.new_empty((samples, 0))
    require_int64(name, soft)
    if soft.ndim != 1:
        require_shape(
            name, soft, (samples, soft.shape[-1] if soft.ndim else 0), "or (rows,) shared by all samples"
        )
    require_range(name, soft, 0, None, "name rows of the soft rows")
    return soft.expand(samples, -1)


def _moved_labels(
    labels: torch.Tensor | None, source: torch.Tensor, added: int, origin: torch.Tensor
) -> torch.Tensor | None:
    if labels is None:
        return None
    require_int64("labels", labels)
    require_shape("labels", labels, tuple(source.shape), "give one label a token")
    return torch.nn.functional.pad(labels, (0, added), value=IGNORED_LABEL).gather(-1, origin)


def _require_mask(mask_BT: torch.Tensor, source_BT: torch.Tensor) -> None:
    if mask_BT.is_floating_point():
        raise ValueError(f"mask: dtype {mask_BT.dtype}, must be bool or an integer type, convert it.")
    require_shape("mask", mask_BT, tuple(source_BT.shape), "give one value a token")
    real_BT = mask_BT != 0
    rises = real_BT[:, :1].sum(1) + (real_BT[:, 1:] & ~real_BT[:, :-1]).sum(1)
    fits = ((mask_BT == 0) | (mask_BT == 1)).all() & (rises <= 1).all()
    require(fits, "mask: must be one run of ones a row, zeros elsewhere, pad on the left or on the right.")


def _require_boundaries(cu_seqlens_S1: torch.Tensor, source_T: torch.Tensor) -> None:
    if cu_seqlens_S1.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens: dtype {cu_seqlens_S1.dtype}, must be int32 or int64, convert it.")
    if cu_seqlens_S1.ndim != 1 or not len(cu_seqlens_S1):
        raise ValueError(
            f"cu_seqlens: shape {tuple(cu_seqlens_S1.shape)}, must be (samples + 1,), start it with 0."
        )
    T = len(source_T)
    ascending = (cu_seqlens_S1.diff() >= 0).all() & (cu_seqlens_S1[0] == 0) & (cu_seqlens_S1[-1] == T)
    require(ascending, f"cu_seqlens: must ascend from 0 to the {T} tokens of source, count the lengths anew.")


def require(holds: torch.Tensor, rule: str) -> None:
    """Raise ValueError where `holds` is false; on a GPU the kernel asserts it, so that nothing waits."""
    if holds.device.type != "cpu":
        torch._assert_async(holds, rule)
    elif not holds:
        raise ValueError(rule)


def require_int64(name: str, values: torch.Tensor) -> None:
    """Raise ValueError for another dtype than int64."""
    if values.dtype != torch.int64:
        raise ValueError(f"{name}: dtype {values.dtype}, must be torch.int64, convert it with .long().")


def require_ndim(name: str, values: torch.Tensor, ndim: int, remedy: str) -> None:
    """Raise ValueError for another number of dimensions."""
    if values.ndim != ndim:
        raise ValueError(f"{name}: shape {tuple(values.shape)}, must have {ndim} dimensions, {remedy}.")


def require_shape(name: str, values: torch.Tensor, shape: tuple[int, ...], remedy: str) -> None:
    """Raise ValueError for another shape."""
    if tuple(values.shape) != shape:
        raise ValueError(f"{name}: shape {tuple(values.shape)}, must be {shape}, {remedy}.")


def require_range(name: str, values: torch.Tensor, least: int, below: int | None, remedy: str) -> None:
    """Raise ValueError where a value is not in [least, below)."""
    if not values.numel():
        return
    low, high = torch.aminmax(values)
    rule = f"{name}: must be {f'at least {least}' if below is None else f'in [{least}, {below})'}, {remedy}"
    if values.device.type == "cpu":  # plain numbers: several small tensor operations cost more than the scan
        lowest, highest = int(low), int(high)
        if lowest < least or (below is not None and highest >= below):
            raise ValueError(f"{rule}; found {lowest if lowest < least else highest}.")
    else:
        require(low >= least if below is None else (low >= least) & (high < below), rule)
