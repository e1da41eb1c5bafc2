"""How large a LLaMA-shaped model is, from the dimensions of its config.json: parameters, FLOPs, cache.

Shapes in formulas: h hidden width, f MLP width, q = heads * head width, k = key-value heads * head
width, L layers, V vocabulary, s tokens of a sample.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recloom.data_shards.errors import UserError
from recloom.trainer.models import SMOLLM2, resolve_model

LLAMA_SHAPED = ("llama", "mistral", "qwen2")


@dataclass(frozen=True)
class ModelSize:
    """Dimensions of a decoder with gated MLP, RMS norms and no biases (Qwen2's add under 0.1 %)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    positions: int
    tied: bool = False
    head_width: int | None = None

    @property
    def query_width(self) -> int:
        return self.heads * (self.head_width or self.hidden // self.heads)

    @property
    def key_width(self) -> int:
        return self.query_width // self.heads * self.kv_heads

    @property
    def layer_parameters(self) -> int:
        """2hq + 2hk (attention) + 3hf (MLP) + 2h (norms)."""
        attention = 2 * self.hidden * (self.query_width + self.key_width)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def parameters(self) -> int:
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden

    @property
    def largest_parameter(self) -> int:
        """The biggest single weight: what ZeRO-3 gathers and reduces in one piece."""
        return self.hidden * max(self.vocab, self.intermediate, self.query_width)

    def cache_bytes(self, element: int) -> int:
        """Key-value cache of one token: 2 L k elements."""
        return 2 * self.layers * self.key_width * element

    def training_flops(self, tokens: float, sample_tokens: float, answer_share: float) -> float:
        """FLOPs of forward and backward, recomputation not counted (Kaplan et al. 2020, table 1).

        6 a layer parameter and token, 6 L q s a token for causal attention inside samples, and 6 V h
        for each answer token: elsewhere no logits are made.
        """
        layers = 6 * self.layers * (self.layer_parameters + self.query_width * sample_tokens)
        return tokens * (layers + 6 * self.vocab * self.hidden * answer_share)


# The config.json of models that a plan should know before they are downloaded.
KNOWN = {
    SMOLLM2: ModelSize(576, 1536, 30, 9, 3, 49152, 8192, tied=True),
    "meta-llama/Llama-2-7b-hf": ModelSize(4096, 11008, 32, 32, 32, 32000, 4096),
    "meta-llama/Llama-2-13b-hf": ModelSize(5120, 13824, 40, 40, 40, 32000, 4096),
    "meta-llama/Llama-2-70b-hf": ModelSize(8192, 28672, 80, 64, 8, 32000, 4096),
}


def find_model(name: str) -> tuple[ModelSize | None, str]:
    """The dimensions of the config's `model.path`, None where they can't be known, and where it is.

    Nothing is downloaded. Raises UserError for a name that is no folder and no hub id.
    """
    folder = Path(name).expanduser()
    if name == SMOLLM2:
        return KNOWN[name], "built in, made at first use"
    if folder.is_dir():
        return read_size(Path(resolve_model(name, Path())) / "config.json"), "a local folder"
    cached = hub_config(resolve_model(name, Path()))
    if cached is not None:
        return read_size(cached), "in the Hugging Face cache, missing files are downloaded"
    return KNOWN.get(name), "not on this machine, downloaded at first use (LLaMA asks for a login)"


def hub_config(name: str) -> Path | None:
    """The config.json of a hub id, if it was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found) if isinstance(found, str) else None


def read_size(path: Path) -> ModelSize | None:
    """The dimensions in a config.json; None for a model of another shape."""
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}): download the model again.") from None
    if config.get("model_type") not in LLAMA_SHAPED:
        return None
    return ModelSize(
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        vocab=config["vocab_size"],
        positions=config["max_position_embeddings"],
        tied=config.get("tie_word_embeddings", False),
        head_width=config.get("head_dim"),
    )
