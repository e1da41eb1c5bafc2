"""Which rank holds what under tensor parallelism (Megatron-LM, Shoeybi et al. 2019), without any engine.

Consecutive ranks form a tensor-parallel group: together they hold the model once, each a part of every layer,
and all of them read the same rows. Ranks of the same place in their groups hold the same part of the weights
and read different rows: they are the data-parallel ranks, of which there are world size / tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

from recloom.data_shards.errors import UserError

# column: rows of the weight, so outputs, are divided. packed: the same, of two matrices stacked in one
# weight. row: columns of the weight, so inputs, are divided, and the partial outputs are summed.
Division = Literal["column", "packed", "row"]
HEAD, EMBEDDING = "lm_head", "embed_tokens"
LLAMA: dict[str, Division] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), "column"),
    **dict.fromkeys(("o_proj", "down_proj"), "row"),
}
GLM: dict[str, Division] = {**LLAMA, "gate_up_proj": "packed"}
OPT: dict[str, Division] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "fc1"), "column"),
    **dict.fromkeys(("out_proj", "fc2"), "row"),
}
DIVISIONS = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "glm": GLM, "glm4": GLM, "opt": OPT}
PIECE = 10**9  # DeepSpeed's own
LOCAL_HEADS = {"opt": "num_heads"}  # of an attention that does not take the number from its tensors' widths


@dataclass(frozen=True)
class RankLayout:
    """The place of this rank. `tensor`: ranks of a tensor-parallel group. `piece`: weights that ZeRO-3
    updates at a time, and that lie together in checkpoints."""

    rank: int
    world_size: int
    tensor: int = 1
    piece: int = PIECE

    @property
    def ranks(self) -> str:
        """In words."""
        return named_ranks(self.world_size, self.tensor)

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        return self.world_size // self.tensor

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor


ALONE = RankLayout(0, 1)


def named_ranks(world_size: int, tensor: int) -> str:
    return f"{world_size} rank{'s' * (world_size > 1)} with parallel.tensor = {tensor}"


def sum_over_data(value: torch.Tensor, layout: RankLayout) -> torch.Tensor:
    """The sum over data-parallel ranks, on all ranks. The ranks of a tensor-parallel group hold the same
    value, of which one counts."""
    if layout.world_size == 1:
        return value
    total = torch.zeros_like(value) if layout.tensor_rank else value.clone()
    dist.all_reduce(total)
    return total


def check_ranks(tensor: int, ranks: int) -> None:
    """Raises UserError when the ranks can't form groups."""
    if ranks % tensor:
        raise UserError(
            f"parallel.tensor = {tensor}: {ranks} ranks can't form groups of {tensor}, "
            f"start a multiple of {tensor} ranks or set it to a divisor of {ranks}."
        )


def check_model(tensor: int, config: Any) -> None:
    """Raises UserError when a model's layers can't be divided. config: of Hugging Face."""
    if tensor == 1:
        return
    if config.model_type not in DIVISIONS:
        raise UserError(
            f"parallel.tensor = {tensor}: the layers of a model of type '{config.model_type}' are not known "
            f"here, only those of {', '.join(DIVISIONS)}, set it to 1."
        )
    heads = config.num_attention_heads
    fault = undivided(tensor, heads, getattr(config, "num_key_value_heads", None) or heads)
    if fault is not None:
        raise UserError(f"{fault}.")


def undivided(tensor: int, heads: int, kv_heads: int) -> str | None:
    """What is wrong, in one sentence without a full stop. A rank needs whole heads, and DeepSpeed would give
    ranks beyond the number of key-value heads none at all."""
    for count, name in ((kv_heads, "key-value"), (heads, "attention")):
        if count % tensor:
            return (
                f"parallel.tensor = {tensor}: the model's {count} {name} heads can't be shared evenly, "
                f"set it to a divisor of {count}"
            )
    return None


def division_of(name: str, divisions: dict[str, Division]) -> Division | None:
    """How a linear layer is divided, from its dotted name; None: each rank keeps it whole.

    Low-rank updates go with the layer they stand beside: the thin matrix on the divided side is divided.
    """
    parts = name.split(".")
    if "layers" not in parts:
        return None
    if parts[-1] == "base_layer":
        return divisions.get(parts[-2])
    if len(parts) > 2 and parts[-2] in ("lora_A", "lora_B"):
        division = divisions.get(parts[-3])
        return division if (parts[-2] == "lora_A") == (division == "row") else None
    return divisions.get(parts[-1])
