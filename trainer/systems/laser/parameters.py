"""How many parameters a tuning trains (Table 3): Bi-Tuning's own, all of each method, other ways."""

from __future__ import annotations

from typing import Any

import torch

from recloom.trainer.models import quiet_transformers, resolve_model
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser.methods import stage_numbers, trained_methods
from recloom.trainer.systems.laser.network import read_weights
from recloom.trainer.systems.laser.settings import LaserConfig
from recloom.trainer.systems.laser.training import model_folder

LORA_RANK, LORA_LAYERS = 8, ("q_proj", "v_proj")


def counts(run: Run[LaserConfig]) -> dict[str, int]:
    """Trainable parameters by way of tuning."""
    llm = empty_llm(resolve_model(run.config.model.path, run.cache))
    width, tokens = llm.get_input_embeddings().embedding_dim, run.config.bitune.mformer.tokens
    found = {
        "full tuning": sum(p.numel() for p in llm.parameters()),
        f"LoRA (rank {LORA_RANK}, {' and '.join(LORA_LAYERS)})": lora_parameters(llm),
        f"prompt tuning ({tokens} tokens)": tokens * width,
        f"Bi-Tuning ({tokens} tokens and a suffix)": (tokens + 1) * width,
    }
    for method in trained_methods(run.config):
        last = stage_numbers(run.config, method)[-1]
        weights = read_weights(model_folder(run, method, last))
        found[f"{method.name} in all"] = sum(tensor.numel() for tensor in weights.values())
    return found


def empty_llm(path: str) -> Any:
    """The LLM without its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet_transformers(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))


def lora_parameters(llm: Any) -> int:
    """Two thin matrices a layer adapted (Hu et al. 2022)."""
    named = [m for name, m in llm.named_modules() if name.rpartition(".")[2] in LORA_LAYERS]
    return sum(LORA_RANK * (layer.in_features + layer.out_features) for layer in named)
