"""The dimensions of the config's model, from its config.json or from what is known here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recloom.data_shards.errors import UserError
from recloom.trainer.models import SMOLLM2, resolve_model
from recloom.trainer.parallel_layout import undivided
from recloom.trainer.planning.shapes import GlmSize, ModelSize, OptSize

LLAMA_SHAPED = ("llama", "mistral", "qwen2")
GLM_NORMS = {"glm": 2, "glm4": 4}  # of a layer, by model_type

# The config.json of models that a plan should know before they are downloaded.
KNOWN: dict[str, ModelSize] = {
    SMOLLM2: ModelSize(576, 1536, 30, 9, 3, 49152, 8192, tied=True),
    "meta-llama/Llama-2-7b-hf": ModelSize(4096, 11008, 32, 32, 32, 32000, 4096),
    "meta-llama/Llama-2-13b-hf": ModelSize(5120, 13824, 40, 40, 40, 32000, 4096),
    "meta-llama/Llama-2-70b-hf": ModelSize(8192, 28672, 80, 64, 8, 32000, 4096),
    "facebook/opt-6.7b": OptSize(4096, 16384, 32, 32, 32, 50272, 2048),
    "zai-org/glm-4-9b-hf": GlmSize(4096, 13696, 40, 32, 2, 151552, 131072, head_width=128),
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
    login = " (LLaMA asks for a login)" if name.startswith("meta-llama/") else ""
    return KNOWN.get(name), f"not on this machine, downloaded at first use{login}"


def check_division(name: str, tensor: int) -> None:
    """Raises UserError when tensor parallelism can't divide a model, as far as its dimensions are known."""
    model, _ = find_model(name) if tensor > 1 else (None, "")
    fault = undivided(tensor, model.heads, model.kv_heads) if model is not None else None
    if fault is not None:
        raise UserError(f"{fault}.")


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
    if config.get("model_type") in LLAMA_SHAPED:
        return llama_size(config)
    if config.get("model_type") in GLM_NORMS:
        return glm_size(config)
    return opt_size(config) if config.get("model_type") == "opt" else None


def llama_size(config: dict[str, Any]) -> ModelSize:
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


def glm_size(config: dict[str, Any]) -> GlmSize:
    """What LLaMA's shape has too, and the biases and norms."""
    norms = GLM_NORMS[config["model_type"]]
    shared = vars(llama_size(config))
    return GlmSize(**shared, attention_bias=config.get("attention_bias", norms == 2), norms=norms)


def opt_size(config: dict[str, Any]) -> OptSize | None:
    """None for OPT-350M, whose norms stand behind and whose embeddings are narrower, and for the like."""
    narrow = config.get("word_embed_proj_dim") not in (None, config["hidden_size"])
    odd = not config.get("do_layer_norm_before", True) or not config.get("enable_bias", True)
    if narrow or odd:
        return None
    return OptSize(
        hidden=config["hidden_size"],
        intermediate=config["ffn_dim"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_attention_heads"],
        vocab=config["vocab_size"],
        positions=config["max_position_embeddings"],
        tied=config.get("tie_word_embeddings", True),
    )
