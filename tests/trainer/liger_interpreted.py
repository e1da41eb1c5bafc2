"""Prints how far a small model with Liger's kernels, in Triton's interpreter, is from the same without them.

TRITON_INTERPRET must be 1 before Triton is imported, so this is a process of its own.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import triton.language as tl
from liger_kernel.ops import rms_norm
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from triton.runtime import interpreter

from recloom.trainer.liger import apply_liger

convert = interpreter._implicit_cvt


def with_floats(value: Any) -> Any:
    """The interpreter hands over Python's floats as they are, the compiler scalars that have `to`."""
    if not isinstance(value, float):
        return convert(value)
    handle = interpreter.TensorHandle(np.array([value], np.float32), tl.float32)
    return tl.tensor(handle, tl.float32)


def logits_and_gradients(network: Any, ids_BT: Tensor) -> list[Tensor]:
    logits_BTV = network(input_ids=ids_BT).logits
    gradients = torch.autograd.grad(logits_BTV.square().sum(), list(network.parameters()))
    return [logits_BTV.detach(), *gradients]


def main() -> None:
    interpreter._implicit_cvt = with_floats
    rms_norm.rsqrt = lambda x: tl.rsqrt(x)  # CUDA's own is not interpreted
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes))
    ids_BT = torch.randint(0, 64, (2, 7))
    plain = logits_and_gradients(network, ids_BT)
    apply_liger(network)
    fused = logits_and_gradients(network, ids_BT)
    worst = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(plain, fused, strict=True))
    layer: Any = network.model.layers[0]
    forwards = [layer.mlp.forward, layer.input_layernorm.forward, network.model.norm.forward]
    print(json.dumps({"worst": worst, "modules": [one.__func__.__module__ for one in forwards]}))


main()
