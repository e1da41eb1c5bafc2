"""What only passes over memory in a decoder layer - norms, gated layers, rotations - by other functions.

Matrix products and attention stay as they are, and so do the modules, whose weights ZeRO-3 gathers. The
functions come from `compiled_regions.py` and `scoring_regions.py`.

Shapes: B rows, T tokens, C width of the model, F of a gated layer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import Tensor

Rotation = Callable[..., tuple[Tensor, Tensor]]  # of query, key, cos, sin, as in transformers


@dataclass(frozen=True)
class Regions:
    """norm: of x (B, T, C), weight (C,) and epsilon. gate: of the two halves (B, T, F) of a gated layer, to
    silu(gate) * up. rotation: makes one of the model's own, which it may call."""

    norm: Callable[[Tensor, Tensor, float], Tensor]
    gate: Callable[[Tensor, Tensor], Tensor]
    rotation: Callable[[Rotation], Rotation]


def replace_regions(network: Any, regions: Regions) -> None:
    """Have a language model compute by these functions; all models of its file get the rotation."""
    is_silu = getattr(network.config, "hidden_act", None) == "silu"
    for module in network.modules():
        if is_norm(module):
            module.region, module.forward = regions.norm, MethodType(norm_forward, module)
        elif is_gated(module) and is_silu:
            module.region, module.forward = regions.gate, MethodType(gated_forward, module)
    source: Any = sys.modules[type(network).__module__]  # transformers has a file a model, with its rotation
    rotation: Any = getattr(source, "apply_rotary_pos_emb", None)
    if rotation is not None and not hasattr(rotation, "replaced"):
        source.apply_rotary_pos_emb = regions.rotation(rotation)
        source.apply_rotary_pos_emb.replaced = rotation


def is_norm(module: Any) -> bool:
    """Models have classes of their own, alike in name and attributes."""
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def is_gated(module: Any) -> bool:
    return all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj"))


def norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    out: Tensor = self.region(hidden_states, self.weight, self.variance_epsilon)
    return out


def gated_forward(self: Any, x: Tensor) -> Tensor:
    out: Tensor = self.down_proj(self.region(self.gate_proj(x), self.up_proj(x)))
    return out
