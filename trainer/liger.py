"""Liger's fused kernels in a language model (Hsu et al. 2024, https://github.com/linkedin/Liger-Kernel).

Its fused loss is not taken: ours makes logits of answers only (trainer/loss.py).
"""

from __future__ import annotations

import os
from typing import Any

import torch

from recloom.data_shards.errors import UserError

LOSSES = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def apply_liger(network: Any) -> None:
    """Put Liger's norms, rotations and gated layers in the place of a model's, in place; weights stay.

    Raises UserError without the package or a GPU, and for a kind of model that Liger has nothing for.
    """
    from transformers.integrations.liger import apply_liger_kernel
    from transformers.utils import is_liger_kernel_available

    if not is_liger_kernel_available():
        raise UserError(
            "model.liger = true: its package is not there: pip install liger-kernel, or set model.liger to "
            "false."
        )
    if not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"):
        raise UserError(
            "model.liger = true: its kernels need a GPU and there is none: set model.liger to false."
        )
    check_model_type(network.config.model_type)
    apply_liger_kernel(network, LOSSES)


def check_model_type(model_type: str) -> None:
    """Liger leaves a model that it does not know as it is and only logs that."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN

    if model_type not in KNOWN:
        raise UserError(
            f"model.liger = true: Liger has nothing for models of type {model_type} (it has: "
            f"{', '.join(sorted(KNOWN))}): set model.liger to false."
        )
