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

from recloom.trainer.block_attention import Ranges, Sample, block_attention, pays, samples_of
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
    before: list[Ranges] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each sample.

    Args:
        boundaries: ascending token offsets, the first 0, the last T; sample s is
            `boundaries[s]:boundaries[s + 1]`.
        before: ranges of the row that a sample's tokens see in front of their own, a sample
            (`share_beginnings`).

    Returns:
        The output (B, T, H, D) and no weights, as transformers expects.
    """
    if attention_mask is not None:
        raise ValueError("packed attention takes boundaries, not a mask")
    if before is None and fits(query_BHTD, dropout):
        return varlen_attention(query_BHTD, key_BHTD, value_BHTD, boundaries, scaling), None
    samples = samples_of(boundaries, before=before)
    if pays(query_BHTD, samples, dropout):
        return block_attention(query_BHTD, key_BHTD, value_BHTD, samples, scaling), None
    parts = [
        sample_attention(query_BHTD, key_BHTD, value_BHTD, sample, scaling, dropout) for sample in samples
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def sample_attention(
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    sample: Sample,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """The output of one sample's own tokens, (B, H, N, D)."""
    key, value = (seen_tokens(tensor, sample) for tensor in (key_BHTD, value_BHTD))
    length = sample.end - sample.start
    mask = None
    if sample.before:
        mask = query_BHTD.new_ones(length, sample.num_seen, dtype=torch.bool).tril(sample.num_seen - length)
    return scaled_dot_product_attention(
        query_BHTD[:, :, sample.start : sample.end],
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=query_BHTD.shape[1] != key_BHTD.shape[1],
    )


def seen_tokens(all_BHTD: torch.Tensor, sample: Sample) -> torch.Tensor:
    """The keys or values that a sample sees; a copy only where they lie apart."""
    own = all_BHTD[:, :, sample.start : sample.end]
    before = [all_BHTD[:, :, start:end] for start, end in sample.before]
    return torch.cat([*before, own], dim=2) if before else own


def no_mask(*_: Any, **__: Any) -> None:
    """The mask that transformers would build: none, the boundaries carry the structure."""


def register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, no_mask)


register()
