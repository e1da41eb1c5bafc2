"""The instruction-tuning loss on packed rows: cross-entropy of the answers (Llama4Rec, eq. 8).

Shapes: B = 1 row, T tokens of the row, A answer tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from recloom.data_shards.packing import block_causal_mask
from recloom.data_shards.stream import IGNORE, PackedRow
from recloom.trainer.packed_attention import PACKED


def model_inputs(
    row: PackedRow, keep_A: torch.Tensor, attention: str, device: torch.device
) -> dict[str, Any]:
    """What the model's forward takes for one row; logits are asked for at `keep_A` only."""
    inputs: dict[str, Any] = {
        "input_ids": row.ids_T[None].to(device),
        "position_ids": row.position_ids_T[None].to(device),
        "logits_to_keep": keep_A.to(device),
        "use_cache": False,
    }
    if attention == PACKED:
        inputs["boundaries"] = row.boundaries.tolist()
    else:
        mask = block_causal_mask(row.boundaries, len(row.ids_T), torch.bool)
        inputs["attention_mask"] = mask.to(device)
    return inputs


def answer_loss(model: Any, row: PackedRow, attention: str, device: torch.device) -> torch.Tensor:
    """Summed negative log-likelihood of the row's answer tokens, float32 scalar.

    Position t predicts token t + 1, so logits are computed only where the next token has a label:
    of a prompt of 300 tokens with an answer of 40 the vocabulary projection is done for 40. An
    empty row gives zero with a gradient path, so that all ranks run the same collectives.
    """
    keep_A = torch.nonzero(row.labels_T[1:] != IGNORE)[:, 0]
    if len(keep_A) == 0:
        nothing = torch.zeros(1, dtype=torch.long)
        logits = model(**model_inputs(row, nothing, attention, device)).logits
        return logits.float().sum() * 0.0
    logits_AV = model(**model_inputs(row, keep_A, attention, device)).logits[0]
    target_A = row.labels_T[1:][keep_A].to(device)
    return cross_entropy(logits_AV.float(), target_A, reduction="sum")
