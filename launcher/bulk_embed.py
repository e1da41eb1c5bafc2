"""Bulk requests for vectors, as far as no engine is needed: their rules, and answers from what vLLM pools.

Shape letters: H width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from recloom.data_shards.errors import UserError
from recloom.trainer.requests import Answer, Request, pack_vector


def check_one_kind(requests: Sequence[Request]) -> None:
    """An engine gives vectors or text. Raises UserError for requests that want both."""
    vectors = sum(request.embed for request in requests)
    if 0 < vectors < len(requests):
        raise UserError(
            f"requests: embed is true in {vectors} of {len(requests)}: a pass gives vectors or text, "
            "ask for them in two passes."
        )


def fault_of_embed(request: Request) -> str | None:
    """Why a request for a vector makes no sense; None when it does."""
    if request.max_tokens != 0:
        return f"max_tokens = {request.max_tokens}: 0 where a vector is asked for"
    if request.stop or request.score_ids or request.choices or request.catalogue:
        return "stop, score_ids, choices and catalogue belong to text: none where a vector is asked for"
    return None


def vector_answer(request: Request, vector_H: torch.Tensor) -> Answer:
    """From what the engine pooled: nothing, where it failed."""
    error = None
    if vector_H.numel() == 0:
        error = "the engine ended the request without a vector"
    elif not vector_H.isfinite().all():
        error = "the vector is not finite in the pass's number format"
    vector = pack_vector(vector_H.float().cpu().numpy()) if error is None else None
    reason = "stop" if error is None else "error"
    return Answer(request.key, "", (), 0.0, (), reason, error, request.meta, vector=vector)
