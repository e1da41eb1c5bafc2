"""A-LLMRec small enough for tests: real MovieLens-100K, a random LLaMA and encoder, every stage."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any

from recloom.trainer.config_io import laid_over

SPELLED = ascii_lowercase + digits
WORDS = ("title", ":", ",", "(", ")", *SPELLED, *(f"##{letter}" for letter in SPELLED))
"""What a random sentence encoder must know to tell titles apart."""
GAIN = 8.0


def small_config(run_dir: Path, model: Path, encoder: Path, **blocks: Any) -> dict[str, Any]:
    """Every method; `blocks` are laid over it as one YAML over another."""
    training = {
        "epochs": 1,
        "learning_rate": 1e-3,
        "evaluate_every": 4,
        "checkpoint_every": 3,
        "tensorboard": False,
    }
    config: dict[str, Any] = {
        "name": "small",
        "system": "a_llmrec",
        "seed": 5,
        "run_dir": str(run_dir),
        "methods": ["llm_only", "tallrec", "mlp_llm", "a_llmrec"],
        "data": {"source": "movielens", "variant": "100k"},
        "scenario": {"negatives": 5, "users": 20, "group_users": 3, "full_catalogue": True},
        "model": {"path": str(model), "dtype": "float32"},
        "backbones": {"sequential": {"model": "sasrec", "max_epochs": 1, "embedding": 16, "max_length": 10}},
        "item_text": {"encoder": str(encoder)},
        "prompts": {"item_noun": "movie", "verb": "watched", "history_items": 3},
        "align": {"epochs": 2, "width": 16, "users": 320, "checkpoint_every": 4},
        "project": {**training, "users": 40, "validation": 4},
        "lora": training,
        "bulk": {"dtype": "float32", "max_model_len": 1024, "chunk_size": 16, "kv_cache_gb": 0.25},
        "genres": {"users": 2, "max_tokens": 6},
        "evaluate": {"ks": [1, 3]},
    }
    return laid_over(config, blocks)


def write_attentive_llama(source: Path, folder: Path) -> Path:
    """`source` with larger layers, whose answers depend on all of the prompt; returns `folder`.

    Fresh layers are so small that the last token alone settles the next one: vectors in the wrong place
    would change log-probabilities by less than two engines differ.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            if weight.dim() == 2:
                weight.mul_(GAIN)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def write_films(folder: Path) -> dict[str, Any]:
    """40 users of 30 films that MovieLens does not know, as CSV files; returns the YAML's data block."""
    rows = [(user, (3 * user + 7 * place) % 30, place) for user in range(40) for place in range(4 + user % 3)]
    lines = "".join(f"u{user},f{item},{place}\n" for user, item, place in rows)
    (folder / "interactions.csv").write_text(f"user,item,time\n{lines}")
    titles = "".join(f"f{item},The {SPELLED[item]}{item} film\n" for item in range(30))
    (folder / "items.csv").write_text(f"item,title\n{titles}")
    interactions = {"user": "user", "item": "item", "timestamp": "time"}
    return {
        "source": "table",
        "name": "Films",
        "interactions": {"path": str(folder / "interactions.csv"), "columns": interactions},
        "items": {"path": str(folder / "items.csv"), "columns": {"item": "item", "title": "title"}},
    }
