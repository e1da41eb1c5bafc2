"""The constrained step on a CPU, compiled by numba: one pass over each row, then its children.

Shape letters as in `constrained_step.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numba import njit, prange

from recloom.kernels.numba_math import FAST, TOO_LARGE, exp_cut, f4, widened
from recloom.kernels.numba_threads import as_many_threads_as_torch
from recloom.kernels.token_trie import TokenTrie, end_mark
from recloom.kernels.trie_restrictions import Restrictions

BLOCK = 4096
PROBE = 256  # words looked at for a shift
Read = Callable[..., np.float32]  # the value at a place of a row, widened to fp32


def step_on_cpu(
    logits_RV: torch.Tensor,
    trie: TokenTrie,
    states_BM: torch.Tensor,
    scores_BM: torch.Tensor,
    keep: int,
    restrictions: Restrictions | None,
    renormalise: bool,
) -> tuple[torch.Tensor, ...]:
    """`constrained_step` for fp32 and bf16 logits; other types are widened first."""
    if logits_RV.dtype == torch.bfloat16:
        read, logits = read_bf16, logits_RV.detach().contiguous().view(torch.uint16).numpy()
    else:
        read, logits = read_fp32, logits_RV.detach().float().contiguous().numpy()
    states = np.ascontiguousarray(states_BM.cpu().numpy(), dtype=np.int64)
    trie.check_states(states)
    scores = np.ascontiguousarray(scores_BM.detach().cpu().numpy(), dtype=np.float32)
    total_R = np.zeros(len(logits), np.float32)
    out = new_output(len(states), keep)
    fine_B = np.ones(len(states), np.bool_)
    arrays = (trie.first_edge_S1, trie.edge_token_E, trie.edge_target_E, trie.tail_token_T)
    marks = (np.int64(end_mark(trie.tail_token_T.dtype)), trie.num_branch_states)
    left = plain(restrictions)
    with as_many_threads_as_torch():
        if not renormalise:
            normalisers(read, logits, scores.reshape(-1), total_R)
        select(read, logits, total_R, renormalise, states, scores, arrays, marks, left, out, fine_B)
    if not fine_B.all():
        raise ValueError(
            f"logits_RV holds NaN, +inf, or -inf at a permitted token (request {int(np.argmin(fine_B))}): "
            "check the model's output."
        )
    return tuple(torch.from_numpy(array) for array in out)


def new_output(requests: int, keep: int) -> tuple[np.ndarray, ...]:
    score_BK = np.full((requests, keep), -np.inf, np.float32)
    beam_BK = np.zeros((requests, keep), np.int32)
    return score_BK, beam_BK, np.full_like(beam_BK, -1), np.full_like(beam_BK, -1)


def plain(restrictions: Restrictions | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(offset_B1, edge_P, only_B); empty arrays for no restriction."""
    if restrictions is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.bool_)
    return restrictions.offset_B1.astype(np.int64), restrictions.edge_P, restrictions.only_B


@njit(inline="always")
def read_fp32(row: np.ndarray, place: int) -> np.float32:
    return row[place]


@njit(inline="always")
def read_bf16(row: np.ndarray, place: int) -> np.float32:
    return widened(row[place])


@njit(inline="always")
def is_permitted(edge: int, edges: np.ndarray, only: bool) -> bool:
    low, high = 0, edges.size
    while low < high:
        middle = (low + high) // 2
        if edges[middle] < edge:
            low = middle + 1
        else:
            high = middle
    return (low < edges.size and edges[low] == edge) == only


@njit
def keep_best(
    score: np.float32, beam: int, token: int, state: int, count: int, best: tuple[np.ndarray, ...]
) -> int:
    """Put one continuation in its place; equal scores stay in the order they came. The new number kept."""
    scores_K, beams_K, tokens_K, states_K = best
    place = count
    if count == scores_K.size:
        place = count - 1
        if not score > scores_K[place]:
            return count
    else:
        count += 1
    while place > 0 and score > scores_K[place - 1]:
        scores_K[place] = scores_K[place - 1]
        beams_K[place] = beams_K[place - 1]
        tokens_K[place] = tokens_K[place - 1]
        states_K[place] = states_K[place - 1]
        place -= 1
    scores_K[place], beams_K[place], tokens_K[place], states_K[place] = score, beam, token, state
    return count


@njit(inline="always", fastmath=FAST)
def highest(read: Read, part: np.ndarray) -> np.float32:
    best = f4(-np.inf)
    for place in range(part.size):
        value = read(part, place)
        best = value if value > best else best
    return best


@njit(inline="always", fastmath=FAST)
def sum_exp(read: Read, part: np.ndarray, shift: np.float32) -> np.float32:
    total = f4(0.0)
    for place in range(part.size):
        total += exp_cut(read(part, place) - shift)
    return total


@njit(fastmath=FAST)
def exact_total(read: Read, row: np.ndarray) -> np.float32:
    """log sum exp with the running maximum as the shift."""
    shift, total = f4(-np.inf), f4(0.0)
    for begin in range(0, row.size, BLOCK):
        part = row[begin : min(begin + BLOCK, row.size)]
        best = highest(read, part)
        if best > shift:
            total = f4(total * np.exp(shift - best))
            shift = best
        total += sum_exp(read, part, shift)
    return shift + np.log(total)


@njit(parallel=True, fastmath=FAST)
def normalisers(read: Read, logits_RV: np.ndarray, scores_R: np.ndarray, total_R: np.ndarray) -> None:
    """total_R = log sum exp of each row whose score is not -inf.

    The maximum of the first words is nearly always near enough to the row's for a shift, which saves a
    look at every word for the maximum; where it is not, the sum shows it.
    """
    for number in prange(logits_RV.shape[0]):
        if scores_R[number] == -np.inf:
            continue
        row = logits_RV[number]
        shift, total = highest(read, row[: min(PROBE, row.size)]), f4(0.0)
        for begin in range(0, row.size, BLOCK):
            total += sum_exp(read, row[begin : min(begin + BLOCK, row.size)], shift)
        total_R[number] = shift + np.log(total) if total < TOO_LARGE else exact_total(read, row)


@njit(inline="always")
def allowed_total(
    read: Read,
    row: np.ndarray,
    first: int,
    last: int,
    tokens: np.ndarray,
    edges: np.ndarray,
    only: bool,
    limited: bool,
) -> np.float32:
    """log sum exp over the permitted children."""
    shift, total = f4(-np.inf), f4(0.0)
    for edge in range(first, last):
        if limited and not is_permitted(edge, edges, only):
            continue
        value = read(row, np.int64(tokens[edge]))
        if value > shift:
            total = f4(total * np.exp(shift - value)) + f4(1.0)
            shift = value
        else:
            total += np.exp(value - shift)
    return shift + np.log(total)


@njit(parallel=True)
def select(
    read: Read,
    logits_RV: np.ndarray,
    total_R: np.ndarray,
    renormalise: bool,
    states_BM: np.ndarray,
    scores_BM: np.ndarray,
    trie: tuple[np.ndarray, ...],
    marks: tuple[int, int],
    restrictions: tuple[np.ndarray, ...],
    out: tuple[np.ndarray, ...],
    fine_B: np.ndarray,
) -> None:
    first_edge, edge_token, edge_target, tail_token = trie
    end, num_branch = marks
    offset_B1, edge_P, only_B = restrictions
    limited = only_B.size > 0
    beams = states_BM.shape[1]
    for request in prange(states_BM.shape[0]):
        count = 0
        edges, only = edge_P[:0], False
        if limited:
            edges, only = edge_P[offset_B1[request] : offset_B1[request + 1]], only_B[request]
        best = (out[0][request], out[1][request], out[2][request], out[3][request])
        for beam in range(beams):
            before = scores_BM[request, beam]
            if before == -np.inf:
                continue
            state = states_BM[request, beam]
            row = logits_RV[request * beams + beam]
            total = total_R[request * beams + beam]
            if state >= num_branch:
                token = np.int64(tail_token[state - num_branch])
                if token == end:
                    continue
                gain = f4(0.0) if renormalise else read(row, token) - total
                fine_B[request] &= np.isfinite(gain) and np.isfinite(read(row, token))
                count = keep_best(before + gain, beam, token, state + 1, count, best)
                continue
            first, last = first_edge[state], first_edge[state + 1]
            if renormalise:
                total = allowed_total(read, row, first, last, edge_token, edges, only, limited)
            for edge in range(first, last):
                token = np.int64(edge_token[edge])
                score = before + (read(row, token) - total)
                if count == best[0].size and score <= best[0][count - 1] and score > -np.inf:
                    continue
                if limited and not is_permitted(edge, edges, only):
                    continue
                fine_B[request] &= np.isfinite(score)
                count = keep_best(score, beam, token, edge_target[edge], count, best)
