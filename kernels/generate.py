"""Catalogue items from a Hugging Face model: `generate_items(model, prompts, trie, num_beams=10, k=10)`.

Shape letters: R rows (beams of all requests), W columns of one pass, P positions whose next token is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from recloom.kernels.beam_search import Generated, Level, Run, search_items
from recloom.kernels.constrained_step import Step, constrained_step
from recloom.kernels.token_trie import TokenTrie
from recloom.kernels.trie_restrictions import Items, Restrictions, restrict

POSITIONS_AT_ONCE = 1024  # logits of P x V are made for so many positions


def generate_items(
    model: Any,
    prompts: Sequence[Sequence[int]],
    trie: TokenTrie,
    num_beams: int,
    k: int,
    *,
    allowed: Sequence[Items] | None = None,
    excluded: Sequence[Items] | None = None,
    renormalise: bool = False,
    batch_size: int = 32,
) -> list[Generated]:
    """The k best items of the catalogue for each prompt, with their exact log-probabilities.

    Args:
        model: a decoder-only causal LM of transformers (its base model, then a linear head).
        prompts: token ids, of any lengths.
        trie: built with the model's tokenizer; its end token closes each item.
        allowed, excluded: for each prompt candidate items or None, and items it must not get or None.
        renormalise: probabilities over the permitted tokens only, not over the vocabulary.
        batch_size: prompts a pass; memory grows with batch_size * num_beams pasts.

    Errors: ValueError for what `search_items`, `restrict` and `constrained_step` refuse, ids outside the
    vocabulary, and a model whose logits are not its head times its last hidden state.
    """
    limits = None
    if allowed is not None or excluded is not None:
        limits = restrict(trie, allowed=allowed, excluded=excluded)
    if limits is not None and len(limits) != len(prompts):
        raise ValueError(f"allowed and excluded have {len(limits)} entries for {len(prompts)} prompts.")
    check_ids(model, prompts)
    found: list[Generated] = []
    training = model.training
    model.eval()
    try:
        for begin in range(0, len(prompts), batch_size):
            batch = prompts[begin : begin + batch_size]
            own = limits.rows(np.arange(begin, begin + len(batch))) if limits is not None else None
            scorer = ModelScorer(model, trie, 2 * num_beams, own, renormalise)
            found += search_items(scorer, batch, trie, num_beams, k, own)
    finally:
        model.train(training)
    return found


def check_ids(model: Any, prompts: Sequence[Sequence[int]]) -> None:
    words = model.get_input_embeddings().num_embeddings
    for number, prompt in enumerate(prompts):
        if len(prompt) and (min(prompt) < 0 or max(prompt) >= words):
            raise ValueError(
                f"prompt {number} holds a token id outside 0 to {words - 1}, the model's vocabulary."
            )


class ModelScorer:
    """A model with its cache: row n of the cache is the past of run n of the last pass."""

    def __init__(
        self,
        model: Any,
        trie: TokenTrie,
        keep: int,
        restrictions: Restrictions | None,
        renormalise: bool,
    ) -> None:
        self.model, self.trie, self.keep = model, trie, keep
        self.restrictions, self.renormalise = restrictions, renormalise
        self.body, self.head = model.base_model, model.get_output_embeddings()
        self.device = self.head.weight.device
        self.cache: Any = None
        self.mask_RX = torch.zeros(0, 0, dtype=torch.long, device=self.device)
        self.num_passes = 0

    @torch.no_grad()
    def score(self, runs: Sequence[Run]) -> list[list[Level]]:
        """One forward pass over the tokens of all runs; see `beam_search.Scorer`."""
        self.select([run.row for run in runs])
        hidden_RWH = self.forward(runs)
        rows = [(n, w) for n, run in enumerate(runs) for w in wanted(run)]
        row_P, column_P = torch.tensor(rows, device=self.device).T
        states_P = np.array([state for run in runs for state in run.states])
        request_P = np.array([run.request for run in runs for _ in run.states])
        levels = self.levels(hidden_RWH[row_P, column_P], states_P, request_P)
        return [[next(levels) for _ in run.states] for run in runs]

    def select(self, rows: list[int]) -> None:
        """Row n of the past becomes the old row rows[n]."""
        if self.cache is None:
            self.mask_RX = self.mask_RX.new_zeros(len(rows), 0)
            return
        index_R = torch.tensor(rows, device=self.device)
        self.cache.batch_select_indices(index_R)
        self.mask_RX = self.mask_RX[index_R]

    def forward(self, runs: Sequence[Run]) -> torch.Tensor:
        """Last hidden states of this pass's columns; a run shorter than the pass is padded on the right."""
        width = max(len(run.tokens) for run in runs)
        ids_RW = torch.zeros(len(runs), width, dtype=torch.long)
        mask_RW = torch.zeros_like(ids_RW)
        for n, run in enumerate(runs):
            ids_RW[n, : len(run.tokens)] = torch.tensor(run.tokens, dtype=torch.long)
            mask_RW[n, : len(run.tokens)] = 1
        past_R1 = self.mask_RX.sum(1, keepdim=True)
        self.mask_RX = torch.cat((self.mask_RX, mask_RW.to(self.device)), 1)
        out = self.body(
            input_ids=ids_RW.to(self.device),
            attention_mask=self.mask_RX,
            position_ids=past_R1 + torch.arange(width, device=self.device),
            past_key_values=self.cache,
            use_cache=True,
        )
        if self.cache is None:
            self.check_head(out.last_hidden_state, ids_RW)
        self.cache = out.past_key_values
        self.num_passes += 1
        return out.last_hidden_state

    def check_head(self, hidden_RWH: torch.Tensor, ids_RW: torch.Tensor) -> None:
        """Some models scale or cap their logits: then the head alone is not the model."""
        first = self.model(input_ids=ids_RW[:1, :1].to(self.device)).logits[0, 0].float()
        if not torch.allclose(self.head(hidden_RWH[0, 0]).float(), first, rtol=1e-2, atol=1e-2):
            raise ValueError(
                f"the logits of {type(self.model).__name__} are not its head times its last hidden state: "
                "beams of such a model are not supported."
            )

    def levels(self, hidden_PH: torch.Tensor, states_P: np.ndarray, request_P: np.ndarray) -> Iterator[Level]:
        for begin in range(0, len(states_P), POSITIONS_AT_ONCE):
            part = slice(begin, begin + POSITIONS_AT_ONCE)
            own = self.restrictions.rows(request_P[part]) if self.restrictions is not None else None
            step = constrained_step(
                self.head(hidden_PH[part]),
                self.trie,
                torch.from_numpy(states_P[part])[:, None],
                torch.zeros(len(states_P[part]), 1),
                self.keep,
                own,
                self.renormalise,
            )
            yield from step_levels(step)


def wanted(run: Run) -> range:
    """The columns of a run's pass at which a level is wanted."""
    return range(len(run.tokens) - len(run.states), len(run.tokens))


def step_levels(step: Step) -> Iterator[Level]:
    scores, tokens, states = (x.cpu().numpy() for x in (step.score_BK, step.token_BK, step.state_BK))
    for score_K, token_K, state_K in zip(scores, tokens, states, strict=True):
        real = token_K >= 0
        yield Level(score_K[real], token_K[real], state_K[real])
