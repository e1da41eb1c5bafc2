"""Bulk answers that can only be catalogue items or given choices: cursors for vLLM, beams on its scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from recloom.kernels.beam_search import Generated, Level, Run, search_items
from recloom.kernels.token_trie import TokenTrie
from recloom.kernels.trie_cursor import Cursor, ItemCursor, ListCursor
from recloom.kernels.trie_restrictions import Restrictions, permitted_children, restrict
from recloom.trainer.requests import Answer, Catalogue, Choices, Request, SoftPrompt

MAX_SCORE_IDS = 128  # vLLM's limit of logprob_token_ids

Questions = list[tuple[tuple[int, ...], tuple[int, ...], SoftPrompt | None]]


class Tries:
    """The saved tries of a worker, each mapped once."""

    def __init__(self) -> None:
        self.opened: dict[str, TokenTrie] = {}

    def open(self, path: str) -> TokenTrie:
        if path not in self.opened:
            self.opened[path] = TokenTrie.load(Path(path))
        return self.opened[path]

    def cursor(self, arguments: dict[str, Any]) -> Cursor | None:
        """What `constraint_arguments` described; None for no constraint."""
        if "choices" in arguments:
            return ListCursor(**arguments["choices"])
        if "catalogue" in arguments:
            return self.item_cursor(Catalogue(**arguments["catalogue"]))
        return None

    def item_cursor(self, catalogue: Catalogue) -> ItemCursor:
        return ItemCursor(self.open(catalogue.trie), catalogue.allowed, catalogue.excluded)

    def items_of(self, request: Request, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The items that a whole answer spells; none for one that was cut."""
        assert request.catalogue is not None
        cursor = self.item_cursor(request.catalogue)
        for token in token_ids:
            cursor.advance(token)
        return tuple(cursor.items())


def constraint_arguments(request: Request) -> dict[str, Any] | None:
    """The request's constraint as plain data, which vLLM carries to the hook."""
    if request.choices is not None:
        return {"choices": {**asdict(request.choices), "vocab_size": 1 + highest_id(request.choices)}}
    if request.catalogue is not None:
        return {"catalogue": asdict(request.catalogue)}
    return None


def highest_id(choices: Choices) -> int:
    return max((max(ids, default=0) for ids in (*choices.inner, *choices.last)), default=0)


def fault_of_constraint(request: Request, tries: Tries, vocab_size: int, max_model_len: int) -> str | None:
    """Why a request's constraint can't be kept; None when it can."""
    if request.choices is not None and highest_id(request.choices) >= vocab_size:
        return f"a choice has token {highest_id(request.choices)}, the vocabulary has {vocab_size}"
    try:
        tries.cursor(constraint_arguments(request) or {})
        catalogue = request.catalogue
        if catalogue is None:
            return None
        if catalogue.num_beams < 1:
            return f"num_beams = {catalogue.num_beams}: at least 1"
        trie = tries.open(catalogue.trie)
    except (ValueError, OSError) as error:
        return str(error)
    if trie.vocab_size > vocab_size:
        return f"the trie's vocabulary has {trie.vocab_size} tokens, the model's {vocab_size}"
    if len(request.prompt_ids) + trie.longest > max_model_len:
        return (
            f"the prompt has {len(request.prompt_ids)} tokens, an item up to {trie.longest}: "
            f"together they may have {max_model_len}"
        )
    return None


def best_items(scorer: EngineScorer, tries: Tries, requests: list[Request]) -> dict[str, Answer]:
    """Beam search for all requests; those with one trie and one number of beams go together."""
    groups: dict[tuple[str, int], list[Request]] = defaultdict(list)
    for request in requests:
        assert request.catalogue is not None
        groups[request.catalogue.trie, request.catalogue.num_beams].append(request)
    answers: dict[str, Answer] = {}
    for (path, num_beams), group in groups.items():
        limits = group_limits(tries.open(path), group)
        prompts = [request.prompt_ids for request in group]
        scorer.begin(tries.open(path), 2 * num_beams, limits, [request.soft for request in group])
        found = search_items(scorer, prompts, tries.open(path), num_beams, num_beams, limits)
        answers |= {r.key: item_answer(r, generated) for r, generated in zip(group, found, strict=True)}
    return answers


def group_limits(trie: TokenTrie, group: list[Request]) -> Restrictions | None:
    wanted = [request.catalogue for request in group if request.catalogue is not None]
    if not any(one.allowed is not None or one.excluded for one in wanted):
        return None
    return restrict(trie, allowed=[one.allowed for one in wanted], excluded=[one.excluded for one in wanted])


def item_answer(request: Request, found: Generated) -> Answer:
    best = found.scores[0] if found.scores else 0.0
    items, scores = tuple(found.items), tuple(found.scores)
    return Answer(request.key, "", (), best, scores, "stop", None, request.meta, items)


class EngineScorer:
    """Beams scored by one-token requests for the children's exact log-probabilities.

    Every position of a run is a request of its own; the prefix cache holds what they share. Children beyond
    the engine's limit are asked for in parts.
    """

    def __init__(self, ask: Callable[[Questions], list[list[float]]]) -> None:
        self.ask = ask

    def begin(
        self, trie: TokenTrie, keep: int, limits: Restrictions | None, softs: Sequence[SoftPrompt | None]
    ) -> None:
        """softs: the soft rows of each request's prompt; they keep their places while the text grows."""
        self.trie, self.keep, self.limits, self.softs = trie, keep, limits, softs

    def score(self, runs: Sequence[Run]) -> list[list[Level]]:
        """See `beam_search.Scorer`; there is no past to keep, vLLM's prefix cache has it."""
        children = [
            permitted_children(self.trie, state, self.limits, run.request)
            for run in runs
            for state in run.states
        ]
        texts = [(text, self.softs[run.request]) for run in runs for text in texts_before(run)]
        questions = [
            (text, tuple(tokens[begin : begin + MAX_SCORE_IDS].tolist()), soft)
            for (text, soft), (tokens, _) in zip(texts, children, strict=True)
            for begin in range(0, len(tokens), MAX_SCORE_IDS)
        ]
        answers = iter(self.ask(questions))
        levels = iter([self.level(answers, tokens, states) for tokens, states in children])
        return [[next(levels) for _ in run.states] for run in runs]

    def level(self, answers: Iterator[list[float]], tokens: np.ndarray, states: np.ndarray) -> Level:
        parts = -(-len(tokens) // MAX_SCORE_IDS)
        logp = np.array([value for _ in range(parts) for value in next(answers)], dtype=np.float32)
        best = np.argsort(-logp, kind="stable")[: self.keep]
        return Level(logp[best], tokens[best], states[best])


def texts_before(run: Run) -> list[tuple[int, ...]]:
    """The whole text before each wanted position's next token."""
    text = (*run.past, *run.tokens)
    return [text[: len(text) - back] for back in range(len(run.states) - 1, -1, -1)]
