"""Beam search over the catalogue: the same beams and scores as Hugging Face's, with fewer forward passes.

A beam whose state has one child needs no choice, so its whole forced run goes through the model in one pass;
the log-probabilities wait in the beam's queue until the other beams of its request have reached the same
length. Beams are pruned length by length all the same, so the result equals a search token by token.

`Search` holds the bookkeeping of one request on the host; a `Scorer` runs a model (`generate.py` for Hugging
Face, `launcher/bulk.py` for vLLM).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from recloom.kernels.token_trie import ROOT, TokenTrie
from recloom.kernels.trie_restrictions import Restrictions


@dataclass(frozen=True)
class Level:
    """The continuations of one beam at one length, best first: log-probability, token, state behind it."""

    logp_C: np.ndarray
    token_C: np.ndarray
    state_C: np.ndarray


@dataclass(frozen=True)
class Beam:
    """A prefix of items. row: where the scorer keeps its past; queue: levels known beyond its tokens."""

    score: np.float32
    state: int
    tokens: tuple[int, ...]
    row: int
    queue: tuple[Level, ...] = ()


@dataclass(frozen=True)
class Run:
    """Tokens that a scorer puts behind the past in `row` of request `request`.

    states: where the trie stands at each of the last len(states) tokens; one Level is wanted for each. past:
    all tokens before them, prompt included. A beam that only keeps its place has no tokens.
    """

    request: int
    row: int
    past: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    states: tuple[int, ...] = ()


class Scorer(Protocol):
    def score(self, runs: Sequence[Run]) -> list[list[Level]]:
        """Levels for each run; afterwards row n of the past is that of runs[n]."""
        ...


@dataclass(frozen=True)
class Generated:
    """The best items of one request, best first, and their log-probabilities given the prompt."""

    items: list[int]
    scores: list[float]


@dataclass
class Search:
    """The beams of one request, as in transformers' `_beam_search` without length penalty.

    Of the 2 * num_beams best continuations those that end count when they are among the num_beams best, the
    others go on; the search ends when no beam can beat the worst of num_beams ended ones.
    """

    request: int
    trie: TokenTrie
    num_beams: int
    beams: list[Beam] = field(default_factory=lambda: [Beam(np.float32(0), ROOT, (), 0)])
    ended: list[tuple[np.float32, int]] = field(default_factory=list)

    def runs(self, prompt: Sequence[int]) -> list[Run]:
        """What the model must see next; none when the search is over. The first runs hold the prompt."""
        while self.beams and all(beam.queue for beam in self.beams):
            self.step()
        return [self.run(beam, prompt) for beam in self.beams]

    def run(self, beam: Beam, prompt: Sequence[int]) -> Run:
        text = (*prompt, *beam.tokens)
        if beam.queue:
            return Run(self.request, beam.row, text)
        forced = self.trie.forced_run(beam.state)
        if forced and self.trie.is_end(forced[-1][1]):
            forced = forced[:-1]  # nothing is chosen behind the last token
        num_past = len(text) - 1 if beam.tokens else 0
        tokens = (*text[num_past:], *(token for token, _ in forced))
        return Run(
            self.request, beam.row, text[:num_past], tokens, (beam.state, *(state for _, state in forced))
        )

    def take(self, rows: Sequence[int], levels: Sequence[list[Level]]) -> None:
        """What the scorer found for the runs of `runs`, and where their pasts are now."""
        self.beams = [
            Beam(beam.score, beam.state, beam.tokens, row, beam.queue or tuple(found))
            for beam, row, found in zip(self.beams, rows, levels, strict=True)
        ]

    def step(self) -> None:
        """All beams one token further."""
        scores = [beam.score + beam.queue[0].logp_C for beam in self.beams]
        places = [(n, c) for n, beam in enumerate(self.beams) for c in range(len(beam.queue[0].logp_C))]
        all_scores = np.concatenate(scores)
        kept = np.argsort(-all_scores, kind="stable")[: 2 * self.num_beams]
        going_on = []
        for rank, place in enumerate(kept):
            beam, child = self.beams[places[place][0]], places[place][1]
            state = int(beam.queue[0].state_C[child])
            if not self.trie.is_end(state):
                token = int(beam.queue[0].token_C[child])
                going_on.append(
                    Beam(all_scores[place], state, (*beam.tokens, token), beam.row, beam.queue[1:])
                )
            elif rank < self.num_beams:
                self.ended.append((all_scores[place], state))
        self.ended = sorted(self.ended, key=lambda pair: -pair[0])[: self.num_beams]
        self.beams = going_on[: self.num_beams]
        if len(self.ended) == self.num_beams and self.beams and self.beams[0].score <= self.ended[-1][0]:
            self.beams = []

    def best(self, k: int, restrictions: Restrictions | None) -> Generated:
        """The k best items; items of one title have one score and stand in the order of their ids."""
        items: list[int] = []
        scores: list[float] = []
        for score, state in self.ended:
            found = self.trie.items_at(state)
            if restrictions is not None:
                found = restrictions.permitted_items(self.request, found)
            items += found.tolist()
            scores += [float(score)] * len(found)
        return Generated(items[:k], scores[:k])


def search_items(
    scorer: Scorer,
    prompts: Sequence[Sequence[int]],
    trie: TokenTrie,
    num_beams: int,
    k: int,
    restrictions: Restrictions | None = None,
) -> list[Generated]:
    """The k best items for each prompt; one call of the scorer serves all requests that are not done.

    Errors: ValueError for k not in 1 to num_beams, an empty prompt, a wrong number of restrictions.
    """
    check_request(prompts, num_beams, k, restrictions)
    searches = [Search(request, trie, num_beams) for request in range(len(prompts))]
    # before the first pass every request's past is the row of its number
    for search in searches:
        search.beams = [Beam(beam.score, beam.state, beam.tokens, search.request) for beam in search.beams]
    active = searches
    while active:
        wanted = [search.runs(prompts[search.request]) for search in active]
        active = [search for search, runs in zip(active, wanted, strict=True) if runs]
        wanted = [runs for runs in wanted if runs]
        levels = scorer.score([run for runs in wanted for run in runs]) if wanted else []
        place = 0
        for search, runs in zip(active, wanted, strict=True):
            rows = range(place, place + len(runs))
            search.take(rows, levels[place : place + len(runs)])
            place += len(runs)
    return [search.best(k, restrictions) for search in searches]


def check_request(
    prompts: Sequence[Sequence[int]], num_beams: int, k: int, restrictions: Restrictions | None
) -> None:
    if not 1 <= k <= num_beams:
        raise ValueError(f"k is {k}: it must be 1 to num_beams ({num_beams}).")
    empty = [n for n, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise ValueError(f"prompt {empty[0]} is empty: give it at least a beginning-of-text token.")
    if restrictions is not None and len(restrictions) != len(prompts):
        raise ValueError(
            f"restrictions have {len(restrictions)} rows for {len(prompts)} prompts: give one each."
        )
