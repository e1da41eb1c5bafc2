"""Passes that only score next tokens, without vLLM: prompts that begin alike share one forward pass.

A user's candidates are asked with prompts that differ in their last words. `score_next` computes what they
have in common once and the rest side by side, as vLLM does with its prefix cache, with less work a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os.path import commonprefix
from pathlib import Path

import torch

from recloom.launcher.bulk_soft import SoftRows
from recloom.launcher.bulk_tries import Tries
from recloom.trainer.candidate_scoring import score_next
from recloom.trainer.decoder_layers import spare_last_layer
from recloom.trainer.models import quiet_transformers
from recloom.trainer.requests import Answer, BulkSettings, Request
from recloom.trainer.scoring_regions import fuse_regions
from recloom.trainer.tree_attention import TREE

MAX_TOKENS = 4096  # of a group: the attention's scores grow with it


class Scorer:
    """Hugging Face on one model, in the place of bulk.py's Engine."""

    def __init__(self, model: Path, settings: BulkSettings) -> None:
        from transformers import AutoModelForCausalLM

        dtype = getattr(torch, settings.dtype)
        with quiet_transformers():
            llm = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation=TREE)
        fuse_regions(llm)
        spare_last_layer(llm)
        self.llm = llm.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.vocab_size: int = llm.config.vocab_size
        self.max_model_len: int = settings.max_model_len or llm.config.max_position_embeddings
        self.tries, self.soft_rows = Tries(), SoftRows(llm.config.hidden_size, dtype)

    def answer(self, requests: list[Request], progress: Callable[[int], None]) -> dict[str, Answer]:
        """Answers by key; `progress` is called after every group with the number so far."""
        answers: dict[str, Answer] = {}
        for group in groups(requests):
            answers |= self.score(group)
            progress(len(answers))
        return answers

    def score(self, group: Sequence[Request]) -> dict[str, Answer]:
        common = beginning(group)
        words = sorted({word for request in group for word in request.score_ids})
        branches = [request.prompt_ids[common:] for request in group]
        logprobs_KW = score_next(self.llm, group[0].prompt_ids[:common], branches, words)
        place = {word: n for n, word in enumerate(words)}
        return {
            request.key: scored(
                request, tuple(logprobs_W[[place[word] for word in request.score_ids]].tolist())
            )
            for request, logprobs_W in zip(group, logprobs_KW, strict=True)
        }


def scored(request: Request, scores: tuple[float, ...]) -> Answer:
    return Answer(request.key, "", (), 0.0, scores, "length", None, request.meta)


def groups(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Neighbours that share a forward pass: at least half of each prompt is common to all.

    A prompt that has less in common would make all others compute more of their own.
    """
    group: list[Request] = []
    for request in requests:
        if group and not fits(group, request):
            yield group
            group = []
        group.append(request)
    if group:
        yield group


def fits(group: Sequence[Request], request: Request) -> bool:
    joined = [*group, request]
    common = beginning(joined)
    lengths = [len(one.prompt_ids) for one in joined]
    return 2 * common >= max(lengths) and common + sum(n - common for n in lengths) <= MAX_TOKENS


def beginning(group: Sequence[Request]) -> int:
    """Tokens that all prompts begin with; at least one is left to each."""
    prompts = [request.prompt_ids for request in group]
    return min(len(commonprefix(prompts)), *(len(prompt) - 1 for prompt in prompts))
