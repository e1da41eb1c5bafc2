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
from recloom.trainer.tree_attention import TREE, Tree
from recloom.trainer.vocabulary_loss import normaliser


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
        model: a causal language model with `logits_to_keep`, its attention `tree` (tree_attention.py) or
            one that takes a dense mask ("sdpa", "eager"); with slots a model that takes `soft_inputs` beside.
        answers: token ids, end token included where it counts. None may be empty.
    """
    fed = [list(answer[:-1]) for answer in answers]  # the last token is scored, never fed
    rows = scored_rows([len(answer) for answer in fed])
    inputs = tree_inputs(model, prompt, fed, torch.arange(1 + sum(map(len, fed))))
    device = inputs["input_ids"].device
    if slots is not None:
        inputs |= soft_inputs(slots, inputs["input_ids"].shape[1], device)
    logits_QV = model(**inputs).logits[0]
    normaliser_Q = normaliser(logits_QV)
    tokens = [
        (logits_QV[row, torch.tensor(list(answer), device=device)].float() - normaliser_Q[row]).cpu().numpy()
        for row, answer in zip(rows, answers, strict=True)
    ]
    return Scored([tuple(answer) for answer in answers], tokens)


@torch.no_grad()
def score_next(
    model: Any, prompt: Sequence[int], branches: Sequence[Sequence[int]], words: Sequence[int]
) -> np.ndarray:
    """Natural log-probabilities (K, W) of the W words as the next token behind prompt + branch k.

    What a rating question a candidate asks: the questions of a user differ behind their common beginning
    only. No branch may be empty; `model` as in `score_answers`.
    """
    last_K = torch.stack([row[-1] for row in scored_rows([len(branch) for branch in branches])])
    logits_KV = model(**tree_inputs(model, prompt, branches, last_K)).logits[0]
    wanted_KW = logits_KV[:, list(words)].float() - normaliser(logits_KV)[:, None]
    found: np.ndarray = wanted_KW.cpu().numpy()
    return found


def tree_inputs(
    model: Any, prompt: Sequence[int], branches: Sequence[Sequence[int]], rows_Q: Tensor
) -> dict[str, Any]:
    """What the model is called with; rows_Q: whose logits are wanted, 0 is the prompt's last position."""
    device = next(model.parameters()).device
    lengths = [len(branch) for branch in branches]
    ids = [*prompt, *(token for branch in branches for token in branch)]
    places_T = torch.cat([torch.arange(len(prompt)), *(len(prompt) + torch.arange(n) for n in lengths)])
    kept_Q = (len(prompt) - 1 + rows_Q).to(device)
    seen = seen_by(model, len(prompt), lengths)
    return (seen | {"kept_A": kept_Q} if "tree" in seen else seen) | {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": places_T[None].to(device),
        "logits_to_keep": kept_Q,
        "use_cache": False,
    }


def seen_by(model: Any, num_prompt: int, lengths: list[int]) -> dict[str, Any]:
    """Who sees whom, in the words of the model's attention."""
    weight = next(model.parameters())
    if model.config._attn_implementation == TREE:
        return {"attention_mask": None, "tree": Tree.of(num_prompt, lengths, weight.device)}
    mask_TT = dense_mask(num_prompt, lengths)
    # "eager" adds the mask to its scores: True and False would count as 1 and 0 there.
    bias_TT = torch.zeros(mask_TT.shape, dtype=weight.dtype).masked_fill(~mask_TT, float("-inf"))
    return {"attention_mask": bias_TT[None, None].to(weight.device)}


def dense_mask(num_prompt: int, lengths: list[int]) -> Tensor:
    """Mask (T, T), True where seen."""
    total = num_prompt + sum(lengths)
    mask_TT = torch.zeros(total, total, dtype=torch.bool)
    mask_TT[:, :num_prompt] = True
    mask_TT[:num_prompt, :num_prompt] = torch.ones(num_prompt, num_prompt, dtype=torch.bool).tril()
    start = num_prompt
    for length in lengths:
        own = slice(start, start + length)
        mask_TT[own, own] = torch.ones(length, length, dtype=torch.bool).tril()
        start += length
    return mask_TT


def scored_rows(lengths: list[int]) -> list[Tensor]:
    """For each branch the rows that predict its tokens and the one behind it; row 0 is the prompt's last."""
    rows, start = [], 1
    for length in lengths:
        rows.append(torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(start, start + length)]))
        start += length
    return rows
