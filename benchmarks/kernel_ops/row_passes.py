"""Norm, rotation and gate of a Llama layer in inference against the modules of transformers.

Shapes: B = 1 row, T tokens, C width, H heads of queries, D head width, F width of the gated layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from kernel_ops.case import Case
from torch import Tensor
from torch.nn.functional import silu
from transformers.models.llama.modeling_llama import LlamaRMSNorm, rotate_half

from recloom.kernels.row_passes import rms_norm, rotate, silu_gate_

SIZES = ((576, 9, 1536), (4096, 32, 11008))  # C, H, F of SmolLM2-135M and LLaMA-2-7B
ROWS = (512, 2048)
Call = Callable[[], Tensor]
normal = partial(torch.randn, dtype=torch.bfloat16)


@torch.no_grad()
def quietly(step: Callable[[], Tensor]) -> Tensor:
    return step()


def gate(gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
    """A copy each time, which the loop is charged for: it writes over its input."""
    return silu_gate_(gate_BTF.clone(), up_BTF)


def same(first: Callable[[], Tensor], second: Callable[[], Tensor]) -> None:
    torch.testing.assert_close(first(), second(), atol=0.07, rtol=0.02)


def turned(heads_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> Tensor:
    """As `apply_rotary_pos_emb`, which turns queries and keys at once."""
    return heads_BHTD * cos_BTD[:, None] + rotate_half(heads_BHTD) * sin_BTD[:, None]


def gated(gate_BTF: Tensor, up_BTF: Tensor) -> Tensor:
    return silu(gate_BTF) * up_BTF


def norm_calls(tokens: int, width: int) -> tuple[Call, Call]:
    x_BTC, norm = normal(1, tokens, width), LlamaRMSNorm(width).bfloat16()
    return partial(rms_norm, x_BTC, norm.weight, norm.variance_epsilon), partial(norm, x_BTC)


def rotation_calls(tokens: int, heads: int, width: int) -> tuple[Call, Call]:
    half_BTD = normal(1, tokens, width // 2).float()
    angle_BTD = torch.cat([half_BTD, half_BTD], dim=-1)
    heads_BHTD = normal(1, tokens, heads, width).transpose(1, 2)  # so they come out of a projection
    told = heads_BHTD, angle_BTD.cos().bfloat16(), angle_BTD.sin().bfloat16()
    return partial(rotate, *told), partial(turned, *told)


def gate_calls(tokens: int, wide: int) -> tuple[Call, Call]:
    told = normal(1, tokens, wide), normal(1, tokens, wide)
    return partial(gate, *told), partial(gated, *told)


def cases(device: str) -> Iterator[Case]:
    """On a CPU only; GPUs have no loop of ours."""
    for (width, heads, wide), tokens in product(SIZES if device == "cpu" else (), ROWS):
        torch.manual_seed(0)
        shape = f"C={width} H={heads} F={wide} T={tokens}"
        calls = {
            "norm": (norm_calls(tokens, width), 2 * width),
            "rotation": (rotation_calls(tokens, heads, width // heads), 2 * width),
            "gate": (gate_calls(tokens, wide), 3 * wide),
        }
        for name, (pair, numbers) in calls.items():
            ours, theirs = (partial(quietly, call) for call in pair)
            check, moved = partial(same, ours, theirs), 2 * tokens * numbers
            yield Case(f"row pass: {name}", "Hugging Face", shape, "bfloat16", ours, theirs, check, moved)
