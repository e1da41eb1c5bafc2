"""A recipe small enough for tests: real MovieLens-100K, a tiny random LLaMA, every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def small_config(run_dir: Path, model: Path, **training: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "system": "llama4rec",
        "seed": 5,
        "run_dir": str(run_dir),
        "data": {"source": "movielens", "variant": "100k"},
        "model": {"path": str(model), "dtype": "float32"},
        "backbones": {
            "direct": {"model": "mf", "max_epochs": 3, "embedding": 16},
            "sequential": {"model": "sasrec", "max_epochs": 1, "embedding": 16, "max_length": 10},
            "rating": {"model": "deepfm", "max_epochs": 2},
        },
        "prompts": {
            "history_items": 3,
            "similar_items": 2,
            "prediction_items": 3,
            "answer_items": 3,
            "disliked_items": 2,
        },
        "instructions": {"per_task": 45, "validation": 6, "samples_per_shard": 50},
        "training": {
            "ift": "shared",
            "epochs": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "pack_length": 512,
            "context": 1024,
            "rows_per_step": 4,
            "gradient_checkpointing": False,
            "evaluate_every": 4,
            "checkpoint_every": 2,
            "tensorboard": False,
            **training,
        },
        "bulk": {"dtype": "float32", "max_model_len": 1024, "chunk_size": 16, "kv_cache_gb": 0.25},
        "augment": {
            "users": 6,
            "attributes": {
                "names": ["director", "star"],
                "examples": [
                    {"title": "Toy Story (1995)", "director": "John Lasseter", "star": "Tom Hanks"},
                    {"title": "Fargo (1996)", "director": "Joel Coen", "star": "Frances McDormand"},
                ],
                "items": 12,
                "max_tokens": 16,
            },
        },
        "rank": {
            "ranking": "best",
            "reachable_only": True,
            "rating_users": 8,
            "max_answer_tokens": 12,
        },
        "evaluate": {"ablation": True},
    }


def write_config(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
