"""Dynamic positions: the intra ids of generated tokens (RecSysLLM, inference phase).

All entities' token sequences lie in one trie, the pool. A token that goes on with some entity of the pool
goes on counting; one that does not restarts at 1. [START] is the head of the first unit, so the first token
has 2, as in training. Where one entity is the beginning of another, the longer path wins while it matches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Entity, Literal, Sample
from recloom.data_shards.textualize.behaviour import VALUES
from recloom.data_shards.textualize.template import one_line
from recloom.kernels.token_trie import ROOT, TokenTrie
from recloom.kernels.trie_build import trie_of

NO_PATH = -1
BETWEEN = "x "  # what a running text has before an entity; a tokenizer may spell it with the space


@dataclass
class IntraCounter:
    """The intra ids of one span, token by token; `next_id` is that of the token given.

    counts_on: the ablation without entities, as in GLM, counts through every span.
    """

    pool: TokenTrie
    intra: int = 1  # of [START]
    state: int = ROOT
    is_first: bool = True
    counts_on: bool = False

    def next_id(self, token: int) -> int:
        state = self.step(self.state, token)
        if self.is_first or self.counts_on or state != NO_PATH:
            self.intra += 1
        else:
            self.intra, state = 1, self.step(ROOT, token)
        self.state, self.is_first = state, False
        return self.intra

    def step(self, state: int, token: int) -> int:
        """The state behind a token, NO_PATH where no entity goes on so."""
        if state == NO_PATH:
            return NO_PATH
        tokens, states = self.pool.children(state)
        found = int(np.searchsorted(tokens, token))
        return int(states[found]) if found < len(tokens) and int(tokens[found]) == token else NO_PATH


def count_intra(pool: TokenTrie, tokens: Sequence[int]) -> list[int]:
    """The ids of [START] and of a whole span."""
    counter = IntraCounter(pool)
    return [1, *(counter.next_id(token) for token in tokens)]


def entity_pool(texts: Iterable[str], renderer: Renderer, end_token: int) -> TokenTrie:
    """The trie of entities as they stand on a line of their own and in a running text."""
    spellings: set[tuple[int, ...]] = set()
    for text in texts:
        spellings.add(tuple(renderer.answer_ids(text)))
        sample = Sample("pool", (Literal(BETWEEN), Entity(text, "item", None)), (), {})
        rendered = renderer.render_text(sample)
        ((start, end, *_),) = rendered.entity_spans
        spellings.add(tuple(rendered.ids_T[start:end].tolist()))
    return trie_of(sorted(spellings), end_token=end_token, vocab_size=end_token + 1)


def entity_texts(titles: Iterable[str], attributes: Iterable[str | None]) -> list[str]:
    """Titles, and the single values of attributes, each once, in order."""
    values = (part for text in attributes if text for part in text.split(VALUES))
    found = dict.fromkeys(one_line(text) for text in (*titles, *values))
    return [text for text in found if text]
