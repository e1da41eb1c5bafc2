"""The dimensions of GLM-4 against transformers' own models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM

from recloom.trainer import packed_attention
from recloom.trainer.planning.model_size import KNOWN, find_model, read_size
from recloom.trainer.planning.shapes import GlmSize

pytestmark = pytest.mark.usefixtures("fused_attention")

NAME = "zai-org/glm-4-9b-hf"
NINE = KNOWN[NAME]
SMALL = GlmSize(128, 352, 2, 4, 1, 64, 512, head_width=48)
ROW = 128


def made(size: GlmSize) -> Any:
    shared: dict[str, Any] = {
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_width,
        "max_position_embeddings": size.positions,
        "tie_word_embeddings": size.tied,
        "attention_bias": size.attention_bias,
        "pad_token_id": 0,
        "attn_implementation": packed_attention.PACKED,
    }
    if size.norms == 4:
        return Glm4ForCausalLM(Glm4Config(**shared))
    return GlmForCausalLM(GlmConfig(**shared))


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("changed", [{}, {"norms": 4}, {"norms": 4, "attention_bias": False}, {"tied": True}])
def test_parameters_equal_the_real_models(changed: dict[str, Any]) -> None:
    assert isinstance(NINE, GlmSize)
    size = replace(NINE, **changed)
    with torch.device("meta"):
        model = made(size)
    assert size.parameters == num_parameters(model)
    assert size.layer_parameters == num_parameters(model.model.layers[0])
    assert size.largest_parameter == max(parameter.numel() for parameter in model.parameters())


def test_glm_4_9b_is_known_before_it_is_there() -> None:
    """As its config.json has it; no login is asked for."""
    size, where = find_model(NAME)
    assert size == NINE and "login" not in where
    assert (NINE.parameters, NINE.positions, NINE.vocab) == (9_399_951_360, 131_072, 151_552)
    with torch.device("meta"):
        assert GlmForCausalLM(GlmConfig()).num_parameters() == NINE.parameters, "the defaults of its class"


@pytest.mark.parametrize("changed", [{}, {"norms": 4}, {"attention_bias": False}])
def test_dimensions_are_read_from_a_folder(tmp_path: Path, changed: dict[str, Any]) -> None:
    size = replace(SMALL, **changed)
    made(size).save_pretrained(tmp_path)
    assert read_size(tmp_path / "config.json") == size


def test_the_layers_are_those_of_the_model() -> None:
    found = {
        name.rsplit(".", 1)[-1]: (module.in_features, module.out_features)
        for name, module in made(SMALL).model.layers[0].named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert found == SMALL.linear_layers
    wide = replace(SMALL, vocab=16)
    assert wide.largest_parameter == 128 * 2 * 352


def kept_bytes(size: GlmSize, frozen: bool) -> int:
    """Bytes that autograd keeps of one row, without weights."""
    model = made(size).to(torch.bfloat16).train().requires_grad_(not frozen)
    row = torch.zeros(1, ROW, size.hidden, dtype=torch.bfloat16, requires_grad=True)
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    inputs = {"boundaries": [0, ROW], "position_ids": torch.arange(ROW)[None], "use_cache": False}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = model.model(inputs_embeds=row, **inputs)
    assert held.last_hidden_state.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("norms", [2, 4])
@pytest.mark.parametrize("frozen", [True, False])
def test_activations_of_a_layer(norms: int, frozen: bool) -> None:
    size = replace(SMALL, norms=norms)
    one, three = (kept_bytes(replace(size, layers=layers), frozen) for layers in (1, 3))
    assert (three - one) / (2 * ROW) == size.layer_activations(2, frozen)
