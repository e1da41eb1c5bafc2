"""Prints how far a small model is from itself with compiled regions, and what was compiled."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from recloom.trainer.compiled_regions import compile_regions
from recloom.trainer.layer_regions import gated_forward, norm_forward

LENGTHS = (7, 12, 33)


def logits_and_gradients(network: Any, ids_BT: Tensor) -> list[Tensor]:
    logits_BTV = network(input_ids=ids_BT).logits
    gradients = torch.autograd.grad(logits_BTV.square().sum(), list(network.parameters()))
    return [logits_BTV.detach(), *gradients]


def distance(some: list[Tensor], others: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(some, others, strict=True))


def main() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes))
    rows = {length: torch.randint(0, 64, (1, length)) for length in LENGTHS}
    plain = {length: logits_and_gradients(network, ids_BT) for length, ids_BT in rows.items()}
    eager = modeling_llama.apply_rotary_pos_emb
    compile_regions(network)
    compile_regions(network)  # a second time changes nothing
    worst = {n: distance(plain[n], logits_and_gradients(network, ids)) for n, ids in rows.items()}
    forwards = [getattr(module.forward, "__func__", None) for module in network.modules()]
    rotation: Any = modeling_llama.apply_rotary_pos_emb
    regions = {
        "norm": forwards.count(norm_forward),
        "gate": forwards.count(gated_forward),
        "rotation": int(rotation._torchdynamo_orig_callable is eager),
    }
    graphs = counters["stats"]["unique_graphs"]
    print(json.dumps({"worst": worst, "regions": regions, "compiled": graphs}))


main()
