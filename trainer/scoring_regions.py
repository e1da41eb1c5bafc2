"""Norms, gated layers and rotations of a model that only scores, by the loops of `kernels/row_passes.py`.

On a CPU they were a seventh of a scoring pass (`benchmarks/kernels.py --op row_passes`).

Shapes: B = 1 row, H heads of queries, K of keys, T tokens, D head width.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from torch import Tensor

from recloom.kernels.row_passes import has_loop, rms_norm, rotate, silu_gate_
from recloom.trainer.layer_regions import Regions, Rotation, replace_regions

ROTATED_BY_HALVES = ("llama", "mistral", "qwen2", "qwen3")  # others pair neighbours, or turn a part of a head


def fuse_regions(network: Any) -> None:
    """Have a language model take the loops where autograd does not record; other models stay as they are."""
    if network.config.model_type in ROTATED_BY_HALVES:
        replace_regions(network, Regions(rms_norm, silu_gate_, by_halves))


def by_halves(rotation: Rotation) -> Rotation:
    """The rotation of a file's models, by the loop where there is one."""

    @wraps(rotation)
    def rotated(
        query_BHTD: Tensor, key_BKTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, *told: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        if told or named or not has_loop(query_BHTD, key_BKTD, cos_BTD, sin_BTD):
            return rotation(query_BHTD, key_BKTD, cos_BTD, sin_BTD, *told, **named)
        return rotate(query_BHTD, cos_BTD, sin_BTD), rotate(key_BKTD, cos_BTD, sin_BTD)

    return rotated
