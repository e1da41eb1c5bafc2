"""Attention over packed rows that never crosses a sample: one call a row on GPUs, elsewhere one a sample.

A dense block-diagonal mask would compute T^2 scores of a row of T tokens and throw most away;
here the cost is the sum of the samples' squares. Importing this module registers the function
with transformers under the name `packed`; boundaries reach it as a keyword of the model's forward.

Shapes: B = 1 row, H heads, T tokens of the row, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from recloom.trainer.block_attention import block_attention, pays, samples_of
from recloom.trainer.varlen_attention import fits, varlen_attention

PACKED = "packed"


def packed_attention(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    boundaries: list[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each sample.

    Args:
        boundaries: ascending token offsets, the first 0, the last T; sample s is
            `boundaries[s]:boundaries[s + 1]`.

    Returns:
        The output (B, T, H, D) and no weights, as transformers expects.
    """
    if attention_mask is not None:
        raise ValueError("packed attention takes boundaries, not a mask")
    if fits(query_BHTD, dropout):
        return varlen_attention(query_BHTD, key_BHTD, value_BHTD, boundaries, scaling), None
    samples = samples_of(boundaries)
    if pays(query_BHTD, samples, dropout):
        return block_attention(query_BHTD, key_BHTD, value_BHTD, samples, scaling), None
    has_groups, parts = query_BHTD.shape[1] != key_BHTD.shape[1], []
    for sample in samples:
        own = slice(sample.start, sample.end)
        query, key, value = (tensor[:, :, own] for tensor in (query_BHTD, key_BHTD, value_BHTD))
        parts.append(
            scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=has_groups
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def no_mask(*_: Any, **__: Any) -> None:
    """The mask that transformers would build: none, the boundaries carry the structure."""


def register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, no_mask)


register()
