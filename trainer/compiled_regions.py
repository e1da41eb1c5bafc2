"""What only passes over memory in a decoder layer, compiled into one pass each: norms, rotations, gates.

Import this only where it is used: torch's compiler takes seconds to import.

Shapes: B rows, T tokens, C width of the model, F of a gated layer.
"""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

import torch
from torch import Tensor

from recloom.data_shards.errors import UserError
from recloom.trainer.layer_regions import Regions, replace_regions

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
    rotation: Any = partial(torch.compile, dynamic=True)
    replace_regions(network, Regions(root_mean_square_norm, silu_gate, rotation))


@torch.compile(dynamic=True)
def root_mean_square_norm(x_BTC: Tensor, weight_C: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean of squares + epsilon) in float32, times the weight (Zhang and Sennrich 2019)."""
    wide_BTC = x_BTC.float()
    scale_BT1 = torch.rsqrt(wide_BTC.square().mean(-1, keepdim=True) + epsilon)
    return weight_C * (wide_BTC * scale_BT1).to(x_BTC.dtype)


@torch.compile(dynamic=True)
def silu_gate(gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
    return torch.nn.functional.silu(gate_BTF) * up_BTF
