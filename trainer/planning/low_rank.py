"""What low-rank updates of a frozen model's layers (LoRA, Hu et al. 2022) train and keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from recloom.data_shards.errors import UserError
from recloom.trainer.planning.memory import SmallParts
from recloom.trainer.planning.shapes import ModelSize


class LoraSettings(Protocol):
    """What of a system's block of settings counts here. modules: layers by name, or all of them."""

    @property
    def r(self) -> int: ...

    @property
    def lora_dropout(self) -> float: ...

    @property
    def modules(self) -> Sequence[str] | Literal["all-linear"]: ...


def lora_parts(lora: LoraSettings, model: ModelSize, block: str = "lora") -> SmallParts:
    """Two thin matrices a layer named; of a token, what drop-out leaves, its mask, and the thin product.

    Layers of one input share it where nothing is dropped: this estimate counts it for each. Raises UserError
    when `block`.modules names no layer of the model.
    """
    layers = model.linear_layers
    names = list(layers) if isinstance(lora.modules, str) else lora.modules
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise UserError(
            f"{block}.modules: {', '.join(unknown)} named, no layer of this model: "
            f"choose from {', '.join(layers)}."
        )
    widths = [layers[name] for name in names]
    times = 2 if lora.lora_dropout else 1
    return SmallParts(
        parameters=model.layers * lora.r * sum(inputs + outputs for inputs, outputs in widths),
        largest=lora.r * max(max(pair) for pair in widths),
        layer_elements=sum(times * inputs + lora.r for inputs, _ in widths),
    )
