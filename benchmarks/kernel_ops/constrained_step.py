"""One step of beam search over real titles, against what people use today.

Every side gets the same logits, scores and prefixes and must find the same beams, tokens and scores. The
tries of all sides are made before the timing.

Shapes: B requests of M beams, R = B * M rows, V words, K continuations kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xgrammar
from kernel_ops.case import Case
from kernel_ops.titles import grown, real_catalogue, trie_of_catalogue
from transformers import PrefixConstrainedLogitsProcessor

from recloom.kernels.constrained_step import constrained_step
from recloom.kernels.token_trie import TokenTrie, end_mark

BEAMS = 20
DEPTH = 2
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
Found = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Problem:
    """Beams DEPTH tokens into items, and the logits of their next token."""

    trie: TokenTrie
    logits_RV: torch.Tensor
    states_BM: torch.Tensor
    scores_BM: torch.Tensor
    prefixes: list[list[int]]

    @property
    def shape(self) -> str:
        requests, beams = self.states_BM.shape
        return f"B={requests} M={beams} V={self.logits_RV.shape[1]} items={self.trie.num_items}"


def cases(device: str, data: Path) -> Iterator[Case]:
    real = real_catalogue(data)
    tries = functools.cache(lambda size: trie_of_catalogue(grown(real, size, seed=0)))
    for dtype in (torch.float32, torch.bfloat16):
        problem = drawn(tries(100_000), 32, 32_000, dtype, device)
        for peer, make in PEERS.items():
            yield case(problem, peer, make)
    for requests, words in ((3, 32_000), (128, 32_000), (32, 128_000)):
        yield case(drawn(tries(100_000), requests, words, torch.float32, device), "STATIC", static)
    for size in (10_000, 1_000_000):
        yield case(drawn(tries(size), 32, 32_000, torch.float32, device), "STATIC", static)
    for size in SIZES:
        yield growth(
            drawn(tries(size), 32, 32_000, torch.float32, device),
            drawn(tries(SIZES[0]), 32, 32_000, torch.float32, device),
        )


def drawn(trie: TokenTrie, requests: int, words: int, dtype: torch.dtype, device: str) -> Problem:
    """The beams that random logits lead to."""
    torch.manual_seed(0)
    states_BM = torch.zeros(requests, 1, dtype=torch.int32, device=device)
    scores_BM = torch.zeros(requests, 1, device=device)
    prefixes: list[list[int]] = [[] for _ in range(requests)]
    for _ in range(DEPTH):
        logits_RV = 2 * torch.randn(states_BM.numel(), words, device=device)
        step = constrained_step(logits_RV, trie, states_BM, scores_BM, 2 * BEAMS)
        # those that have ended go on no more
        ended_BK = torch.tensor(
            [[trie.is_end(s) for s in row] for row in step.state_BK.tolist()], device=device
        )
        kept_BM = ended_BK.int().argsort(dim=1, stable=True)[:, :BEAMS]
        beams = states_BM.shape[1]
        states_BM, scores_BM, beam_BM, token_BM = (
            x.gather(1, kept_BM) for x in (step.state_BK, step.score_BK, step.beam_BK, step.token_BK)
        )
        chosen = zip(beam_BM.tolist(), token_BM.tolist(), strict=True)
        prefixes = [
            [*prefixes[b * beams + beam], token]
            for b, pair in enumerate(chosen)
            for beam, token in zip(*pair, strict=True)
        ]
    logits_RV = (2 * torch.randn(requests * BEAMS, words, device=device)).to(dtype)
    return Problem(trie, logits_RV, states_BM, scores_BM, prefixes)


def ours(problem: Problem) -> Callable[[], Found]:
    def run() -> Found:
        step = constrained_step(
            problem.logits_RV, problem.trie, problem.states_BM, problem.scores_BM, 2 * BEAMS
        )
        return step.score_BK, step.beam_BK, step.token_BK

    return run


def case(problem: Problem, peer: str, make: Callable[[Problem], Callable[[], Found]]) -> Case:
    mine, theirs = ours(problem), make(problem)

    def check() -> None:
        assert_equal(mine(), theirs())

    return Case(
        "constrained_step",
        peer,
        problem.shape,
        name_of(problem),
        mine,
        theirs,
        check,
        problem.logits_RV.nbytes,
    )


def assert_equal(found: Found, wanted: Found) -> None:
    """The same scores, and the same beam and token where no other continuation has the same score."""
    real_BK = found[0] > -torch.inf  # there may be fewer than K continuations
    torch.testing.assert_close(found[0][real_BK], wanted[0][real_BK], atol=1e-4, rtol=0)
    assert not (wanted[0][~real_BK] > -torch.inf).any()
    step_BX = found[0].diff(dim=1).abs()
    alone_BK = real_BK.clone()
    alone_BK[:, 1:] &= step_BX > 1e-4
    alone_BK[:, :-1] &= step_BX > 1e-4
    for one, other in zip(found[1:], wanted[1:], strict=True):
        assert torch.equal(one[alone_BK].long(), other[alone_BK].long())


def name_of(problem: Problem) -> str:
    return str(problem.logits_RV.dtype).removeprefix("torch.")


def growth(problem: Problem, small: Problem) -> Case:
    """Our own step on the smallest catalogue as the peer."""
    calls = ours(problem), ours(small)
    peer, least = f"ours, {SIZES[0]} items", problem.logits_RV.nbytes
    return Case("constrained_step", peer, problem.shape, name_of(problem), *calls, lambda: None, least)


def best(scores_RV: torch.Tensor, before_BM: torch.Tensor) -> Found:
    """What transformers' `_beam_search` keeps of R x V log-probabilities."""
    requests, words = len(before_BM), scores_RV.shape[1]
    total_BX = (scores_RV.view(*before_BM.shape, words) + before_BM[:, :, None]).view(requests, -1)
    score_BK, place_BK = total_BX.topk(2 * BEAMS)
    return score_BK, place_BK // words, place_BK % words


def hugging_face(problem: Problem) -> Callable[[], Found]:
    """transformers' own processor over nested dictionaries, as its beam search calls it."""
    root = dictionary_trie(problem.trie)
    prefixes_RT = torch.tensor(problem.prefixes, device=problem.logits_RV.device)

    def allowed(_: int, ids_T: torch.Tensor) -> list[int]:
        node = root
        for token in ids_T.tolist():
            node = node[token]
        return list(node)

    processor = PrefixConstrainedLogitsProcessor(allowed, num_beams=BEAMS)

    def run() -> Found:
        logits_RV = problem.logits_RV.to(copy=True, dtype=torch.float32)
        scores_RV = processor(prefixes_RT, torch.nn.functional.log_softmax(logits_RV, dim=-1))
        return best(scores_RV, problem.scores_BM)

    return run


def dictionary_trie(trie: TokenTrie) -> dict[int, Any]:
    def below(state: int, depth: int) -> dict[int, Any]:
        if depth > DEPTH:  # no deeper prefix is asked for
            return {}
        tokens, states = (x.tolist() for x in trie.children(state))
        return {token: below(child, depth + 1) for token, child in zip(tokens, states, strict=True)}

    return below(0, 0)


def xgrammar_mask(problem: Problem) -> Callable[[], Found]:
    """xgrammar's mask kernel with the bit masks ready, then top-k; no grammar is run."""
    rows, words = problem.logits_RV.shape
    bitmask_RW = torch.zeros(rows, -(-words // 32), dtype=torch.int32)
    bits = bitmask_RW.numpy().view(np.uint32)
    for row, state in enumerate(problem.states_BM.flatten().tolist()):
        tokens = problem.trie.children(state)[0]
        np.bitwise_or.at(bits[row], tokens // 32, np.uint32(1) << (tokens % 32).astype(np.uint32))
    bitmask_RW = bitmask_RW.to(problem.logits_RV.device)

    def run() -> Found:
        logits_RV = problem.logits_RV.to(copy=True, dtype=torch.float32)
        total_R1 = logits_RV.logsumexp(-1, keepdim=True)  # exact scores need the normaliser before the mask
        xgrammar.apply_token_bitmask_inplace(logits_RV, bitmask_RW)
        return best(logits_RV - total_R1, problem.scores_BM)

    return run


def static(problem: Problem) -> Callable[[], Found]:
    """STATIC's sparse step as published (arXiv 2602.22647).

    A CSR matrix of (token, next state), read for all rows at the width of the level's largest branch, behind
    a log-softmax of all words.
    """
    trie, device = problem.trie, problem.logits_RV.device
    num_branch, tails = trie.num_branch_states, trie.tail_token_T.astype(np.int64)
    is_end_T = tails == end_mark(trie.tail_token_T.dtype)
    degree = np.concatenate((np.diff(trie.first_edge_S1.astype(np.int64)), (~is_end_T).astype(np.int64)))
    tail_next = num_branch + np.flatnonzero(~is_end_T) + 1
    token = np.concatenate((trie.edge_token_E.astype(np.int64), tails[~is_end_T]))
    following = np.concatenate((trie.edge_target_E.astype(np.int64), tail_next))
    packed_X2 = torch.from_numpy(np.stack((token, following), 1)).to(device)
    start_S1 = torch.from_numpy(np.concatenate(([0], np.cumsum(degree)))).to(device)
    width = int(degree[states_at(trie, DEPTH)].max())
    place_C = torch.arange(width, device=device)
    no_path = torch.tensor(-torch.inf, device=device)

    def run() -> Found:
        logp_RV = torch.nn.functional.log_softmax(problem.logits_RV.float(), dim=-1)
        state_R = problem.states_BM.flatten().long()
        first_R = start_S1[state_R]
        count_R = start_S1[state_R + 1] - first_R
        edges_RC2 = packed_X2[(first_R[:, None] + place_C).clamp(max=len(packed_X2) - 1)]
        token_RC = edges_RC2[..., 0]
        logp_RC = torch.where(place_C < count_R[:, None], logp_RV.gather(1, token_RC), no_path)
        requests = len(problem.scores_BM)
        total_BX = problem.scores_BM[:, :, None] + logp_RC.view(*problem.scores_BM.shape, width)
        total_BX = total_BX.view(requests, -1)
        score_BK, place_BK = total_BX.topk(2 * BEAMS)
        edges_RC2[..., 1].view(requests, -1).gather(1, place_BK)  # the next states
        return score_BK, place_BK // width, token_RC.view(requests, -1).gather(1, place_BK)

    return run


def states_at(trie: TokenTrie, depth: int) -> np.ndarray:
    """All states `depth` tokens below the root."""
    states = np.zeros(1, np.int64)
    for _ in range(depth):
        branches = states[states < trie.num_branch_states]
        first, last = trie.first_edge_S1[branches], trie.first_edge_S1[branches + 1]
        slots = states[states >= trie.num_branch_states] - trie.num_branch_states
        slots = slots[trie.tail_token_T[slots] != end_mark(trie.tail_token_T.dtype)]
        edges = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
        states = np.concatenate((trie.edge_target_E[edges], slots + trie.num_branch_states + 1))
    return states


PEERS: dict[str, Callable[[Problem], Callable[[], Found]]] = {
    "Hugging Face": hugging_face,
    "STATIC": static,
    "xgrammar mask": xgrammar_mask,
}
