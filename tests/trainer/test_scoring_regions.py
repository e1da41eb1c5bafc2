"""A model whose norms, gated layers and rotations are loops of ours, against the same model without."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Glm4Config, Glm4ForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from recloom.kernels import row_passes
from recloom.trainer.scoring_regions import fuse_regions

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
}


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its file's rotation comes back when the test has ended."""
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_llama.apply_rotary_pos_emb)
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).bfloat16().eval()


def row() -> Tensor:
    return torch.randint(0, 64, (2, 33), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(network: Any) -> Tensor:
    found: Tensor = network(input_ids=row()).logits.double()
    return found


def test_logits_are_as_near_to_the_truth(llama: Any) -> None:
    exact = logits(deepcopy(llama).double())
    plain = (logits(llama) - exact).abs().mean()
    fuse_regions(llama)
    fused = (logits(llama) - exact).abs().mean()
    assert 0 < fused < 1.2 * plain


def test_all_three_loops_run(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Size] = []

    def counted(*tensors: Tensor) -> bool:
        asked.append(tensors[0].shape)
        return False

    fuse_regions(llama)
    fuse_regions(llama)  # a second time changes nothing
    monkeypatch.setattr(row_passes, "has_loop", counted)
    logits(llama)
    assert asked.count(torch.Size([2, 33, 64])) == 2 * 3 + 1, "norms"
    assert asked.count(torch.Size([2, 33, 96])) == 3, "gates"
    assert asked.count(torch.Size([2, 4, 33, 16])) == asked.count(torch.Size([2, 2, 33, 16])) == 3


def test_training_stays_as_it_was(llama: Any) -> None:
    def gradients() -> list[Tensor]:
        loss = llama(input_ids=row(), labels=row()).loss
        return list(torch.autograd.grad(loss, list(llama.parameters())))

    before = gradients()
    fuse_regions(llama)
    assert all(torch.equal(*pair) for pair in zip(before, gradients(), strict=True))


def test_a_model_that_turns_neighbours_stays_as_it_is() -> None:
    network = Glm4ForCausalLM(Glm4Config(**SIZES)).bfloat16().eval()
    before = logits(network)
    fuse_regions(network)
    assert torch.equal(logits(network), before)
    assert not any("forward" in vars(module) for module in network.modules())
