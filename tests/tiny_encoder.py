"""A sentence encoder for tests: small, random, and a sentence-transformers folder like a real one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer


def write_tiny_encoder(folder: Path, words: Sequence[str]) -> Path:
    """A random one-layer BERT, 32 wide, that reads 16 tokens of these words; returns `folder`."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "words.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "words.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=16, **shape)).save_pretrained(
        folder
    )
    parts = [
        {"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in ("Transformer", "Pooling")
    ]
    parts[1]["path"] = "pooling"
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "pooling").mkdir()
    (folder / "pooling/config.json").write_text('{"pooling_mode": "mean"}')
    return folder
