"""A bulk pass whose worker is killed, and the chunks that it leaves."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from recloom.data_shards.artifacts import file_sha256
from recloom.trainer.requests import Request

Chunks = dict[Path, tuple[int, str]]


def chunks(out: Path) -> Chunks:
    """Committed chunks with their time and content."""
    return {path: (path.stat().st_mtime_ns, file_sha256(path)) for path in sorted(out.glob("chunk-*.jsonl"))}


class Killer(threading.Thread):
    """Kills the worker of the pass in `out` as soon as two chunks stand; `before`: those that stood."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.out = out
        self.before: Chunks = {}

    def run(self) -> None:
        while len(standing := chunks(self.out)) < 2:
            time.sleep(0.005)
        (worker,) = (p for p in psutil.Process().children() if str(self.out) in p.cmdline())
        worker.kill()
        self.before = standing


def assert_chunks_were_kept(before: Chunks, after: Chunks) -> None:
    assert 2 <= len(before) < len(after)
    assert before.items() <= after.items()


def embeds(model: Any, request: Request) -> torch.Tensor:
    """The prompt as Hugging Face takes it (1, L, H), soft rows at their places."""
    embeds_LH = model.get_input_embeddings().weight.detach()[list(request.prompt_ids)]
    if request.soft is not None:
        rows_NH = load_file(request.soft.file)["rows"].to(embeds_LH.dtype)
        embeds_LH[list(request.soft.positions)] = rows_NH[list(request.soft.rows)]
    return embeds_LH[None]
