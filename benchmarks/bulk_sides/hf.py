"""Hugging Face: `batches` = prompts of similar length padded to a batch; `tree` = RecLoom's one pass a user.

Shapes: B prompts of a batch, L labels.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from work import Measured, Work, as_lists, leave

from recloom.trainer.candidate_scoring import score_next
from recloom.trainer.tree_attention import TREE

BATCH = 16


@torch.no_grad()
def batched(model: Any, prompts: list[list[int]], labels: list[int]) -> tuple[np.ndarray, int]:
    """Left-padded batches of neighbours; log-probabilities (N, L), and the tokens that are no padding."""
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    found = np.empty((len(prompts), len(labels)))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        longest = max(len(prompts[n]) for n in rows)
        ids = torch.tensor(
            [[0] * (longest - len(prompts[n])) + prompts[n] for n in rows], device=model.device
        )
        mask = torch.tensor(
            [[0] * (longest - len(prompts[n])) + [1] * len(prompts[n]) for n in rows], device=model.device
        )
        places = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=1).logits[
            :, -1
        ]
        found[rows] = logits.float().log_softmax(1)[:, labels].cpu().numpy()
    return found, sum(map(len, prompts))


def tree(model: Any, users: list[list[list[int]]], labels: list[int]) -> tuple[np.ndarray, int]:
    """One forward pass a user: the common beginning once, then what each prompt has of its own."""
    found, computed = [], 0
    for prompts in users:
        common = shared(prompts)
        branches = [prompt[common:] for prompt in prompts]
        found.append(score_next(model, prompts[0][:common], branches, labels))
        computed += common + sum(map(len, branches))
    return np.concatenate(found), computed


def shared(prompts: list[list[int]]) -> int:
    """Tokens that all prompts begin with; at least one is left to each."""
    places = zip(*prompts, strict=False)
    same = next((n for n, column in enumerate(places) if len(set(column)) > 1), min(map(len, prompts)))
    return min(same, min(map(len, prompts)) - 1)


def main() -> None:
    work = Work.read()
    torch.set_num_threads(work.threads)
    begin = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    attention = TREE if sys.argv[-2] == "tree" else None
    model = AutoModelForCausalLM.from_pretrained(
        work.model, dtype=getattr(torch, work.dtype), attn_implementation=attention
    )
    model.to(device).eval()
    started = time.perf_counter() - begin

    def ask(users: list[list[list[int]]]) -> tuple[np.ndarray, int]:
        if sys.argv[-2] == "tree":
            return tree(model, users, work.labels)
        return batched(model, [prompt for user in users for prompt in user], work.labels)

    ask(work.users[:1])
    begin = time.perf_counter()
    logprobs_NL, computed = ask(work.users[1:])
    Measured(time.perf_counter() - begin, started, computed, as_lists(logprobs_NL)).write(work)
    leave()


main()
