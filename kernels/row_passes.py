"""What a decoder layer does beside products and attention, one pass over memory each: norm, rotation, gate.

For inference: autograd does not know of these passes, so while it records they are plain torch, as they are
wherever no loop of ours serves (bfloat16 on CPUs is served; GPUs have Liger's, `model.liger`).

Shapes: B rows, T tokens, C width of the model, H heads, D their width (even), F width of a gated layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def rms_norm(x_BTC: Tensor, weight_C: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean of squares + epsilon), computed in float32, times the weight (Zhang and Sennrich 2019).

    Rounded where Hugging Face's Llama rounds: before the weight, and behind it.
    """
    if has_loop(x_BTC, weight_C):
        from recloom.kernels.row_passes_cpu import norm_on_cpu

        return norm_on_cpu(x_BTC, weight_C, epsilon)
    wide_BTC = x_BTC.float()
    scale_BT1 = torch.rsqrt(wide_BTC.square().mean(-1, keepdim=True) + epsilon)
    return weight_C * (wide_BTC * scale_BT1).to(x_BTC.dtype)


def rotate(heads_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of heads whose halves pair up, as in Llama: (B, H, T, D).

    The loop rounds once and leaves the heads one behind the other in memory, as products of heads want them.
    """
    if has_loop(heads_BHTD, cos_BTD, sin_BTD):
        from recloom.kernels.row_passes_cpu import rotate_on_cpu

        return rotate_on_cpu(heads_BHTD, cos_BTD, sin_BTD)
    low, high = heads_BHTD.chunk(2, dim=-1)
    turned_BHTD = torch.cat([-high, low], dim=-1)
    return heads_BHTD * cos_BTD[:, None] + turned_BHTD * sin_BTD[:, None]


def silu_gate_(gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
    """silu(gate) times up (Shazeer 2020); the loop writes it over `gate`."""
    if has_loop(gate_BTF, up_BTF):
        from recloom.kernels.row_passes_cpu import gate_on_cpu

        return gate_on_cpu(gate_BTF, up_BTF)
    return silu(gate_BTF) * up_BTF


def has_loop(*tensors: Tensor) -> bool:
    on_cpu = all(one.device.type == "cpu" and one.dtype == torch.bfloat16 for one in tensors)
    return on_cpu and not torch.is_grad_enabled()
