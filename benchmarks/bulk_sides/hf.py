"""Hugging Face: prompts of similar length padded to a batch.

Shapes: B prompts of a batch, L labels.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from work import Measured, Work, as_lists, leave

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


def main() -> None:
    work = Work.read()
    torch.set_num_threads(work.threads)
    begin = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(work.model, dtype=getattr(torch, work.dtype))
    model.to(device).eval()
    started = time.perf_counter() - begin

    batched(model, work.warm, work.labels)
    begin = work.begin()
    logprobs_NL, computed = batched(model, work.prompts, work.labels)
    Measured(time.perf_counter() - begin, started, computed, as_lists(logprobs_NL)).write(work)
    leave()


main()
