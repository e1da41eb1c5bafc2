"""Attention of blank infilling over packed rows: all of a sample sees its part A, part B also what lies
before.

No sample sees another. Importing this module registers the function with transformers under the name
`blanks`; where the samples and their parts end reaches it as keywords of the model's forward.

On a GPU the row is one FlexAttention call whose block mask skips what nobody sees. Elsewhere a sample is two
calls: part A to part A without a mask, part B to the sample under the corner of the mask that is its own. No
T x T mask is made.

Shapes: B = 1 row, H heads, T tokens of the row, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from recloom.trainer.block_attention import block_attention, pays, samples_of
from recloom.trainer.packed_attention import no_mask

BLANKS = "blanks"


def blank_attention(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    boundaries: list[int],
    num_a: list[int],
    block_mask: Any = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention inside each sample.

    Args:
        boundaries: ascending token offsets, the first 0, the last T.
        num_a: how many tokens of each sample are part A.
        block_mask: what `make_block_mask` made of both; then one FlexAttention call does all.

    Returns:
        The output (B, T, H, D) and no weights, as transformers expects.
    """
    if attention_mask is not None:
        raise ValueError("the attention of blank infilling takes boundaries, not a mask")
    if block_mask is not None:
        out_BHTD = flex(query_BHTD.device.type)(
            query_BHTD,
            key_BHTD,
            value_BHTD,
            block_mask=block_mask,
            scale=scaling,
            enable_gqa=query_BHTD.shape[1] != key_BHTD.shape[1],
        )
        return out_BHTD.transpose(1, 2).contiguous(), None
    samples = samples_of(boundaries, num_a)
    if pays(query_BHTD, samples, dropout):
        return block_attention(query_BHTD, key_BHTD, value_BHTD, samples, scaling), None
    parts = []
    for sample in samples:
        own = slice(sample.start, sample.end)
        query, key, value = (tensor[:, :, own] for tensor in (query_BHTD, key_BHTD, value_BHTD))
        parts += sample_attention(query, key, value, sample.prefix, scaling, dropout)
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def sample_attention(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    num_a: int,
    scaling: float | None,
    dropout: float,
) -> list[Tensor]:
    """Part A's output and part B's where there is one, or both in one."""
    length = query_BHTD.shape[2]
    options: dict[str, Any] = {
        "scale": scaling,
        "dropout_p": dropout,
        "enable_gqa": query_BHTD.shape[1] != key_BHTD.shape[1],
    }
    keys_a, values_a = key_BHTD[:, :, :num_a], value_BHTD[:, :, :num_a]
    found = [scaled_dot_product_attention(query_BHTD[:, :, :num_a], keys_a, values_a, **options)]
    if num_a < length:
        mask_BT = torch.ones(length - num_a, length, dtype=torch.bool, device=query_BHTD.device).tril(num_a)
        query = query_BHTD[:, :, num_a:]
        found.append(scaled_dot_product_attention(query, key_BHTD, value_BHTD, attn_mask=mask_BT, **options))
    return found


def make_block_mask(boundaries: Sequence[int], num_a: Sequence[int], device: torch.device) -> Any:
    """FlexAttention's mask of a row; the same rule as `masking.packed_attention_mask`."""
    from torch.nn.attention.flex_attention import create_block_mask

    bounds = torch.tensor(boundaries, device=device)
    position_T = torch.arange(int(boundaries[-1]), device=device)
    sample_T = torch.searchsorted(bounds, position_T, right=True) - 1
    a_end_S = bounds[:-1] + torch.tensor(num_a, device=device)
    is_a_T = position_T < a_end_S[sample_T]

    def sees(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (sample_T[row] == sample_T[column]) & (is_a_T[column] | (row >= column))

    length = len(position_T)
    return create_block_mask(sees, None, None, length, length, device=str(device))


@lru_cache(maxsize=2)
def flex(device: str) -> Callable[..., Tensor]:
    """FlexAttention, compiled where a kernel comes of it."""
    from torch.nn.attention.flex_attention import flex_attention

    found: Any = torch.compile(flex_attention) if device == "cuda" else flex_attention
    return cast(Callable[..., Tensor], found)


def register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(BLANKS, blank_attention)
    AttentionMaskInterface.register(BLANKS, no_mask)


register()
