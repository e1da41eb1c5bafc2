"""Log-probabilities of many answers to one prompt, in one forward pass of a Hugging Face model.

The answers lie end to end behind the prompt; each sees the prompt and itself, and starts at the position
behind the prompt, so the result is that of asking them one by one, with the prompt computed once.

Shapes: P tokens of the prompt, K answers, T tokens of prompt and answers, Q positions whose next token is
scored, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recloom.data_shards.renderer import SlotPosition
from recloom.trainer.loss import soft_inputs


@dataclass(frozen=True)
class Scored:
    """tokens[k]: natural log-probabilities of answer k's tokens, each behind the prompt and those before."""

    answers: list[tuple[int, ...]]
    tokens: list[np.ndarray]

    @property
    def totals_K(self) -> np.ndarray:
        """Log-probability of each whole answer (K,)."""
        return np.array([float(logprobs.sum()) for logprobs in self.tokens])

    def greedy(self) -> int:
        """The answer that greedy decoding gives when it is held to these answers; the first of equal ones."""
        left = list(range(len(self.answers)))
        place = 0
        while len(left) > 1 and any(len(self.answers[k]) > place for k in left):
            left = [k for k in left if len(self.answers[k]) > place]
            best = max(left, key=lambda k: self.tokens[k][place])
            left = [k for k in left if self.answers[k][place] == self.answers[best][place]]
            place += 1
        return left[0]


@torch.no_grad()
def score_answers(
    model: Any,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    slots: list[SlotPosition] | None = None,
) -> Scored:
    """Score every answer behind the prompt.

    Args:
        model: a causal language model with `logits_to_keep`, its attention taking a dense mask ("sdpa",
            "eager"); with slots a model that takes `soft_inputs` beside.
        answers: token ids, end token included where it counts. None may be empty.
    """
    weight = next(model.parameters())
    device = weight.device
    fed = [list(answer[:-1]) for answer in answers]  # the last token is scored, never fed
    ids = [*prompt, *(token for answer in fed for token in answer)]
    mask_TT, positions_T, keep_Q, rows = layout(len(prompt), [len(answer) for answer in fed])
    # "eager" adds the mask to its scores: True and False would count as 1 and 0 there.
    bias_TT = torch.zeros(mask_TT.shape, dtype=weight.dtype).masked_fill(~mask_TT, float("-inf"))
    inputs = {
        "input_ids": torch.tensor([ids], device=device),
        "attention_mask": bias_TT[None, None].to(device),
        "position_ids": positions_T[None].to(device),
        "logits_to_keep": keep_Q.to(device),
        "use_cache": False,
    }
    if slots is not None:
        inputs |= soft_inputs(slots, len(ids), device)
    logits_QV = model(**inputs).logits[0].float()
    logprobs_QV = logits_QV - logits_QV.logsumexp(1, keepdim=True)
    tokens = [
        logprobs_QV[row, torch.tensor(list(answer), device=device)].cpu().numpy()
        for row, answer in zip(rows, answers, strict=True)
    ]
    return Scored([tuple(answer) for answer in answers], tokens)


def layout(num_prompt: int, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Mask (T, T, True where seen), positions (T,), scored positions (Q,), and each answer's rows of Q.

    The prompt's last position predicts the first token of every answer.
    """
    total = num_prompt + sum(lengths)
    mask_TT = torch.zeros(total, total, dtype=torch.bool)
    mask_TT[:, :num_prompt] = True
    mask_TT[:num_prompt, :num_prompt] = torch.ones(num_prompt, num_prompt, dtype=torch.bool).tril()
    positions_T = torch.arange(total)
    rows, start = [], num_prompt
    for length in lengths:
        own = slice(start, start + length)
        mask_TT[own, own] = torch.ones(length, length, dtype=torch.bool).tril()
        positions_T[own] = num_prompt + torch.arange(length)
        rows.append(
            torch.cat(
                [torch.zeros(1, dtype=torch.long), torch.arange(start, start + length) - num_prompt + 1]
            )
        )
        start += length
    return mask_TT, positions_T, torch.arange(num_prompt - 1, total), rows
