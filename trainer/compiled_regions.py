"""What only passes over memory in a decoder layer, compiled into one pass each: norms, rotations, gates.

Matrix products and attention stay as they are, and so do the modules, whose weights ZeRO-3 gathers. Import
this only where it is used: torch's compiler takes seconds to import.

Shapes: B rows, T tokens, C width of the model, F of a gated layer.
"""

from __future__ import annotations

import shutil
import sys
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from recloom.data_shards.errors import UserError

COMPILERS = ("c++", "g++", "clang++")


def compile_regions(network: Any) -> None:
    """Have a language model's norms, rotations and gated layers compute by compiled functions; weights stay.

    These are compiled when the first row passes, for rows of any length. Inside of a region nothing is
    rounded to bfloat16, so a loss differs from the plain model's in the last digit of that.

    Raises UserError without a C++ compiler.
    """
    if not any(map(shutil.which, COMPILERS)):
        raise UserError(
            "model.compile = true: there is no C++ compiler (g++ or clang++): install one, or set "
            "model.compile to false."
        )
    is_silu = getattr(network.config, "hidden_act", None) == "silu"
    for module in network.modules():
        if is_norm(module):
            module.forward = MethodType(norm_forward, module)
        elif is_gated(module) and is_silu:
            module.forward = MethodType(gated_forward, module)
    source: Any = sys.modules[type(network).__module__]  # transformers has a file a model, with its rotation
    rotate = getattr(source, "apply_rotary_pos_emb", None)
    if rotate is not None and not hasattr(rotate, "_torchdynamo_orig_callable"):
        source.apply_rotary_pos_emb = torch.compile(rotate, dynamic=True)


@torch.compile(dynamic=True)
def root_mean_square_norm(x_BTC: Tensor, weight_C: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean of squares + epsilon) in float32, times the weight (Zhang and Sennrich 2019)."""
    wide_BTC = x_BTC.float()
    scale_BT1 = torch.rsqrt(wide_BTC.square().mean(-1, keepdim=True) + epsilon)
    return weight_C * (wide_BTC * scale_BT1).to(x_BTC.dtype)


@torch.compile(dynamic=True)
def silu_gate(gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
    return torch.nn.functional.silu(gate_BTF) * up_BTF


def is_norm(module: Any) -> bool:
    """Models have classes of their own, alike in name and attributes."""
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def is_gated(module: Any) -> bool:
    return all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj"))


def norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    out: Tensor = root_mean_square_norm(hidden_states, self.weight, self.variance_epsilon)
    return out


def gated_forward(self: Any, x: Tensor) -> Tensor:
    out: Tensor = self.down_proj(silu_gate(self.gate_proj(x), self.up_proj(x)))
    return out
