"""Prompts with soft rows: vectors of a file in place of some token embeddings (A-LLMRec, stage 2).

Shape letters: N rows of a file, S soft rows of a prompt, L positions of a prompt, H width of the embeddings.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from recloom.data_shards.artifacts import file_sha256
from recloom.trainer.requests import Request, SoftPrompt


class SoftRows:
    """The row files of a worker, each hashed and mapped once; rows come in the engine's number format."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self.width, self.dtype = width, dtype
        self.opened: dict[tuple[str, str], torch.Tensor | str] = {}

    def open(self, soft: SoftPrompt) -> torch.Tensor | str:
        """rows_NH of the prompt's file, or why it can't be used."""
        name = (soft.file, soft.sha256)
        if name not in self.opened:
            self.opened[name] = open_rows(Path(soft.file), soft.sha256, self.width)
        return self.opened[name]

    def rows_of(self, soft: SoftPrompt) -> torch.Tensor:
        """rows_SH of one prompt, in which no zero is negative. Raises ValueError for an unfit file."""
        rows_NH = self.open(soft)
        if isinstance(rows_NH, str):
            raise ValueError(rows_NH)
        return rows_NH[list(soft.rows)].to(self.dtype) + 0.0  # -0.0 + 0.0 is 0.0


def open_rows(path: Path, sha256: str, width: int) -> torch.Tensor | str:
    """The file's `rows` (N, H), mapped, or one sentence: vLLM checks no width and dies of a wrong one."""
    try:
        if file_sha256(path) != sha256:
            return f"{path}: the checksum is not the request's: write the file and the requests again"
        with safe_open(path, framework="pt") as file:
            rows_NH: torch.Tensor = file.get_tensor("rows")
    except (OSError, SafetensorError) as error:
        return f"{path}: no file of soft rows ({error})"
    if rows_NH.ndim != 2 or not rows_NH.is_floating_point():
        return f"{path}: rows are {rows_NH.dtype} of shape {tuple(rows_NH.shape)}, not numbers of (N, H)"
    if rows_NH.shape[1] != width:
        return f"{path}: rows are {rows_NH.shape[1]} wide, the model's embeddings {width}"
    return rows_NH


def fault_of_soft(soft: SoftPrompt, length: int, files: SoftRows) -> str | None:
    """Why the engine must never see these soft rows in a prompt of `length`; None when it may."""
    if fault := fault_of_places(soft, length):
        return fault
    rows_NH = files.open(soft)
    if isinstance(rows_NH, str):
        return rows_NH
    for row in soft.rows:
        if not 0 <= row < len(rows_NH):
            return f"soft row {row}, {soft.file} has {len(rows_NH)} rows"
    if not files.rows_of(soft).isfinite().all():
        return f"{soft.file}: the prompt's soft rows are not all finite in {files.dtype}"
    return None


def fault_of_places(soft: SoftPrompt, length: int) -> str | None:
    if len(soft.positions) != len(soft.rows):
        return f"{len(soft.positions)} soft positions for {len(soft.rows)} soft rows"
    for before, after in pairwise(soft.positions):
        if before >= after:
            return f"soft position {after} behind {before}: they must ascend"
    for position in soft.positions:
        if not 0 <= position < length:
            return f"soft position {position}, the prompt has {length} places"
    return None


def token_ids(request: Request) -> list[int]:
    """The prompt's ids; 0, which nobody looks up, where soft rows stand."""
    soft = set(request.soft.positions) if request.soft is not None else set()
    return [0 if n in soft else token for n, token in enumerate(request.prompt_ids)]


def mixed_prompt(request: Request, soft: SoftPrompt, files: SoftRows) -> dict[str, Any]:
    """The arguments of vLLM's `embeds_input`: soft rows in zeros (L, H), the ids, which of them are tokens.

    vLLM's prefix cache knows a block by ids and embeddings alone, not by which are tokens. Negative zeros,
    which no soft row has, tell token 0 from a soft row of zeros.
    """
    ids = token_ids(request)
    places = list(soft.positions)
    embeds_LH = torch.zeros(len(ids), files.width, dtype=files.dtype)
    embeds_LH[torch.tensor(ids) == 0] = -0.0
    embeds_LH[places] = files.rows_of(soft)
    is_token = torch.ones(len(ids), dtype=torch.bool)
    is_token[places] = False
    return {"prompt_embeds": embeds_LH, "prompt_token_ids": ids, "is_token_ids": is_token.tolist()}
