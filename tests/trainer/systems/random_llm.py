"""A LLaMA of two small layers for tests of what stands around one."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaModel


def random_llm(attention: str, seed: int = 0, **changes: Any) -> LlamaModel:
    """Without a head; its weights are large enough that one token more shows."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    return LlamaModel(LlamaConfig(**(sizes | changes), attn_implementation=attention))
