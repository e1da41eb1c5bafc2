"""The checkpoint of A-LLMRec's stage 1: written whole or not at all, and bound to what it was made from."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from recloom.data_shards.artifacts import atomic_write_bytes, file_sha256
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.config_io import digest
from recloom.trainer.systems.a_llmrec.settings import AlignBlock

CHECKPOINT = "checkpoint.pt"


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """A reader sees the old checkpoint or the new, never a part."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    atomic_write_bytes(folder / CHECKPOINT, buffer.getvalue())


def read_checkpoint(folder: Path, run_digest: str) -> dict[str, Any] | None:
    """The state of the same run, None where there is none that can be read."""
    try:
        state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    except Exception:  # absent, torn or no checkpoint at all: torch has no one error for it
        return None
    fits = isinstance(state, dict) and state.get("digest") == run_digest
    return state if fits else None


def remove_checkpoint(folder: Path) -> None:
    (folder / CHECKPOINT).unlink(missing_ok=True)


def digest_of_run(
    backbone: Backbone,
    sequences: list[np.ndarray],
    texts: list[str],
    settings: AlignBlock,
    encoder_folder: Path,
    seed: int,
) -> str:
    """Of all that the outcome depends on, by content."""
    state = {name: value.detach().contiguous() for name, value in backbone.state_dict().items()}
    files = sorted(path for path in encoder_folder.rglob("*") if path.is_file())
    sequence_bytes = json.dumps([items.tolist() for items in sequences]).encode()
    return digest(
        {
            "backbone": [backbone.settings.model_dump(mode="json"), sha256(safetensors.torch.save(state))],
            "sequences": sha256(sequence_bytes),
            "texts": sha256(json.dumps(texts).encode()),
            "settings": settings.model_dump(mode="json"),
            "encoder": {str(path.relative_to(encoder_folder)): file_sha256(path) for path in files},
            "seed": seed,
        }
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
