"""Random language models of two small layers in all shapes that tensor parallelism knows, as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = 499  # no multiple of anything: the ranks' parts of the vocabulary differ in size
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.1,
}
GROUPED: dict[str, Any] = {
    "intermediate_size": 50,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "llama_tied": ("Llama", {**GROUPED, "tie_word_embeddings": True}),
    "glm": ("Glm", {**GROUPED, "attention_bias": True, "attention_dropout": 0.0}),
    "glm4": ("Glm4", {**GROUPED, "attention_dropout": 0.0}),
    "opt": ("OPT", {"ffn_dim": 50, "word_embed_proj_dim": 32, "dropout": 0.0, "pad_token_id": 1}),
}


def write_tiny_model(folder: Path, kind: str, **changes: Any) -> Path:
    """A model of `KINDS` with weights large enough that each shows; returns `folder`."""
    import torch
    import transformers

    name, own = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **own, **changes})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):  # zeros would hide a bias that is added twice
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder
