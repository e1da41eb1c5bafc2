"""The last layer's feed-forward network at wanted positions only: same logits, same gradients, less work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from recloom.trainer.decoder_layers import decoder_layers, spare_last_layer
from recloom.trainer.packed_attention import PACKED

KEPT = (torch.tensor([2, 3, 8]), torch.tensor([0]))  # of a row each
BOUNDARIES = ([0, 4, 9], [0, 5])


def small_llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=64, num_hidden_layers=2, attn_implementation=PACKED, **sizes)
    return LlamaForCausalLM(config)


def asked(network: Any, row: int, **told: Any) -> Tensor:
    ids_BT = (torch.arange(BOUNDARIES[row][-1])[None] * 7 + row) % 64
    inputs = {"input_ids": ids_BT, "boundaries": BOUNDARIES[row], "logits_to_keep": KEPT[row]}
    logits_BAV: Tensor = network(**inputs, use_cache=False, **told).logits
    return logits_BAV


def gradients(network: Any, is_told: bool) -> list[Tensor]:
    """Of both rows together: each is recomputed in backward once the other one has passed."""
    losses = [
        asked(network, row, **({"kept_A": KEPT[row]} if is_told else {})).square().sum() for row in (0, 1)
    ]
    return list(torch.autograd.grad(sum(losses), list(network.parameters())))


@pytest.mark.parametrize("is_recomputed", [False, True])
def test_logits_and_gradients_stay(is_recomputed: bool) -> None:
    plain, spared = small_llama(), small_llama()
    spare_last_layer(spared)
    spare_last_layer(spared)  # a second time changes nothing
    if is_recomputed:
        spared.train().gradient_checkpointing_enable({"use_reentrant": False})
    for row in (0, 1):
        wanted, found = asked(plain, row), asked(spared, row, kept_A=KEPT[row])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(asked(spared, row), wanted, rtol=0, atol=1e-6)
    for found, wanted in zip(gradients(spared, True), gradients(plain, False), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_last_network_sees_wanted_positions_only() -> None:
    network = small_llama()
    spare_last_layer(network)
    seen: list[int] = []
    for layer in decoder_layers(network):
        layer.mlp.down_proj.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    asked(network, 0, kept_A=KEPT[0])
    asked(network, 1)
    assert seen == [9, 3, 5, 5]


def test_other_models_stay_as_they_are() -> None:
    network = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4))
    before = [module.forward for module in network.modules()]
    spare_last_layer(network)
    assert [module.forward for module in network.modules()] == before
    spare_last_layer(nn.Linear(2, 2))
