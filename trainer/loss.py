"""What a packed row costs: the interface of losses, and the cross-entropy of answers (Llama4Rec, eq. 8).

Shapes: B = 1 row, T tokens of the row, A answer tokens, V vocabulary, U user and J item vectors of the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from recloom.data_shards.packing import block_causal_mask
from recloom.data_shards.renderer import SlotPosition
from recloom.data_shards.stream import IGNORE, PackedRow, StepBatch
from recloom.trainer.packed_attention import PACKED
from recloom.trainer.shared_beginnings import share_beginnings
from recloom.trainer.vocabulary_loss import VocabularyShard, summed_cross_entropy


class Objective(Protocol):
    """What a training minimises: the mean over the units of a step, whatever row or rank holds them."""

    def loss(self, model: Any, row: PackedRow) -> torch.Tensor:
        """The sum over the row's units, float32 scalar; of an empty row zero, with a gradient path."""
        ...

    def units(self, batch: StepBatch) -> int:
        """Units of a step, over all ranks."""
        ...

    def told(self) -> dict[str, float]:
        """What the log says of the last step beside its loss. Called by all ranks."""
        ...


@dataclass(frozen=True)
class AnswerLoss:
    """The mean over answer tokens. vocabulary: the words whose logits the model returns, None for all."""

    attention: str
    device: torch.device
    vocabulary: VocabularyShard | None = None

    def loss(self, model: Any, row: PackedRow) -> torch.Tensor:
        return answer_loss(model, row, self.attention, self.device, self.vocabulary)

    def units(self, batch: StepBatch) -> int:
        return batch.num_answer_tokens

    def told(self) -> dict[str, float]:
        return {}


def model_inputs(
    row: PackedRow, keep_A: torch.Tensor, attention: str, device: torch.device
) -> dict[str, Any]:
    """What the model's forward takes for one row; logits are asked for at `keep_A` only, and the last layer
    is told so (`spare_last_layer`). What samples have in common at their beginning is computed once."""
    shared = share_beginnings(row, keep_A) if shares(row, attention, device) else None
    if shared is not None:
        row, keep_A = shared.row, shared.keep_A
    inputs: dict[str, Any] = {
        "input_ids": row.ids_T[None].to(device),
        "position_ids": row.position_ids_T[None].to(device),
        "logits_to_keep": keep_A.to(device),
        "use_cache": False,
    }
    if attention == PACKED:
        inputs |= {"boundaries": row.boundaries.tolist(), "kept_A": inputs["logits_to_keep"]}
        inputs |= {"before": shared.before_S} if shared is not None and any(shared.before_S) else {}
    else:
        mask = block_causal_mask(row.boundaries, len(row.ids_T), torch.bool)
        inputs["attention_mask"] = mask.to(device)
    return inputs if row.slots is None else {**inputs, **soft_inputs(row.slots, len(row.ids_T), device)}


def shares(row: PackedRow, attention: str, device: torch.device) -> bool:
    """Whether samples may see each other's beginnings. On GPUs flash attention has all samples in one call,
    each with keys of its own."""
    return attention == PACKED and device.type == "cpu" and row.slots is None


def soft_inputs(slots: list[SlotPosition], length: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Which vectors a row needs, each once, and where they stand.

    soft_BT: at a slot the vector's place among the users', then the items'; -1 at a token. user_rows_U and
    items_J: their ids, at least one each, so that every rank passes gradients through the same networks.
    """
    users = sorted({int(id or 0) for _, kind, id in slots if kind == "user"}) or [0]
    items = sorted({int(id or 0) for _, kind, id in slots if kind != "user"}) or [0]
    place = {("user", id): n for n, id in enumerate(users)}
    place |= {("item", id): len(users) + n for n, id in enumerate(items)}
    soft_BT = torch.full((1, length), -1)
    for position, kind, id in slots:
        soft_BT[0, position] = place["user" if kind == "user" else "item", int(id or 0)]
    found = {"soft_BT": soft_BT, "user_rows_U": torch.tensor(users), "items_J": torch.tensor(items)}
    return {name: tensor.to(device) for name, tensor in found.items()}


def answer_loss(
    model: Any,
    row: PackedRow,
    attention: str,
    device: torch.device,
    vocabulary: VocabularyShard | None = None,
) -> torch.Tensor:
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
    return summed_cross_entropy(logits_AV, target_A, vocabulary)
