"""The constrained step on a GPU: one Triton kernel a row of logits, one a request to merge its beams.

The first reads a row once for its normaliser, gathers the children's logits (a few cache lines more), and
keeps the row's best; the second keeps the best of the beams. Both sort words of 64 bits: the score's bits
made comparable above, the place below, so that equal scores stay in order of beam and token.
Shape letters as in `constrained_step.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from recloom.kernels.trie_tensors import TrieTensors

WORDS_BLOCK = 4096
CHILDREN_BLOCK = 256
NOTHING = tl.constexpr(-(2**63))


def step_on_gpu(
    logits_RV: torch.Tensor,
    trie: TrieTensors,
    states_BM: torch.Tensor,
    scores_BM: torch.Tensor,
    keep: int,
    restrictions: tuple[torch.Tensor, ...],
    renormalise: bool,
) -> tuple[torch.Tensor, ...]:
    """`constrained_step` without waiting for the GPU."""
    requests, beams = states_BM.shape
    padded = triton.next_power_of_2(keep)
    device = logits_RV.device
    scores_BM = scores_BM.float().contiguous()
    row_score_RK = torch.empty((requests * beams, padded), dtype=torch.float32, device=device)
    row_child_RK = torch.empty((requests * beams, padded), dtype=torch.int32, device=device)
    bad = torch.zeros(1, dtype=torch.int32, device=device)
    offset_B1, edge_P, only_B = restrictions
    shared = (states_BM, trie.first_edge_S1, trie.edge_token_E, trie.edge_target_E, trie.tail_token_T)
    num_branch = len(trie.first_edge_S1) - 1
    limited = len(edge_P) > 0
    row_kernel[(requests * beams,)](
        logits_RV, logits_RV.stride(0), logits_RV.shape[1], scores_BM, *shared, num_branch, trie.end,
        offset_B1, edge_P, only_B, beams, row_score_RK, row_child_RK, bad,
        renormalise, len(edge_P).bit_length(), limited, padded, WORDS_BLOCK, CHILDREN_BLOCK,
    )  # fmt: skip
    score_BK = torch.empty((requests, keep), dtype=torch.float32, device=device)
    beam_BK, token_BK, state_BK = (
        torch.empty((requests, keep), dtype=torch.int32, device=device) for _ in range(3)
    )
    merge_kernel[(requests,)](
        row_score_RK, row_child_RK, *shared, num_branch, beams, keep, score_BK, beam_BK, token_BK, state_BK,
        padded, triton.next_power_of_2(beams * padded),
    )  # fmt: skip
    message = "logits_RV holds NaN, +inf, or -inf at a permitted token: check the model's output"
    if bad.is_cuda:
        torch._assert_async(bad == 0, message)
    elif bad.item():
        raise ValueError(f"{message}.")
    return score_BK, beam_BK, token_BK, state_BK


@triton.jit
def packed(scores, places):
    """Words that sort by score, then by smaller place; -inf becomes NOTHING."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)  # + 0.0: -0.0 equals 0.0
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    words = (bits.to(tl.int64) << 32) | (0x7FFFFFFF - places).to(tl.int64)
    return tl.where(scores == float("-inf"), NOTHING, words)


@triton.jit
def place_of(words):
    return (0x7FFFFFFF - (words & 0xFFFFFFFF)).to(tl.int32)


@triton.jit
def score_of(words):
    bits = (words >> 32).to(tl.int32)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(words == NOTHING, float("-inf"), bits.to(tl.float32, bitcast=True))


@triton.jit
def best_of_both(one, other, KEEP: tl.constexpr):
    """The KEEP largest of two lists of KEEP words, descending."""
    return tl.topk(tl.reshape(tl.join(one, other), (2 * KEEP,)), KEEP)


@triton.jit
def is_permitted(edges, mask, edge_ptr, begin, end, only, STEPS: tl.constexpr):
    """Binary search of each edge among the request's; STEPS halvings find it."""
    low = tl.zeros_like(edges).to(tl.int64) + begin
    high = tl.zeros_like(edges).to(tl.int64) + end
    for _ in range(STEPS):
        middle = (low + high) // 2
        inside = mask & (low < high)
        smaller = inside & (tl.load(edge_ptr + middle, mask=inside, other=0) < edges)
        high = tl.where(inside & ~smaller, middle, high)
        low = tl.where(smaller, middle + 1, low)
    found = mask & (low < end) & (tl.load(edge_ptr + low, mask=mask & (low < end), other=-1) == edges)
    return mask & (found == (only != 0))


@triton.jit
def row_kernel(
    logits_ptr, row_stride, words, score_ptr, state_ptr, first_edge_ptr, edge_token_ptr, edge_target_ptr,
    tail_token_ptr, num_branch, end_mark, offset_ptr, edge_ptr, only_ptr, beams, out_score_ptr, out_child_ptr,
    bad_ptr, RENORMALISE: tl.constexpr, STEPS: tl.constexpr, LIMITED: tl.constexpr, KEEP: tl.constexpr,
    WORDS: tl.constexpr, CHILDREN: tl.constexpr,
):  # fmt: skip
    """One row: its KEEP best continuations as (score, place among the state's children)."""
    row = tl.program_id(0).to(tl.int64)
    before = tl.load(score_ptr + row)
    state = tl.load(state_ptr + row)
    alive = before > float("-inf")
    in_tail = state >= num_branch
    on_branch = state < num_branch
    tail_token = tl.load(tail_token_ptr + (state - num_branch), mask=in_tail, other=0).to(tl.int64)
    first = tl.load(first_edge_ptr + state, mask=on_branch, other=0)
    last = tl.load(first_edge_ptr + state + 1, mask=on_branch, other=0)
    count = tl.where(in_tail, (tail_token != end_mark).to(tl.int32), last - first)
    count = tl.where(alive, count, 0)
    request = row // beams
    begin, end, only = 0, 0, 0
    if LIMITED:
        begin = tl.load(offset_ptr + request)
        end = tl.load(offset_ptr + request + 1)
        only = tl.load(only_ptr + request)
    row_ptr = logits_ptr + row * row_stride

    shift = -float("inf")
    total = 0.0
    if not RENORMALISE:
        for start in range(0, tl.where(count > 0, words, 0), WORDS):
            word = start + tl.arange(0, WORDS)
            logit = tl.load(row_ptr + word, mask=word < words, other=-float("inf")).to(tl.float32)
            higher = tl.maximum(shift, tl.max(logit, 0))
            safe = tl.where(higher == -float("inf"), 0.0, higher)
            total = total * tl.exp(shift - safe) + tl.sum(tl.exp(logit - safe), 0)
            shift = higher

    best = tl.full((KEEP,), NOTHING, tl.int64)
    bad = False
    for start in range(0, count, CHILDREN):
        child = start + tl.arange(0, CHILDREN)
        mask = child < count
        from_edge = child < tl.where(in_tail, 0, count)
        edge = first + child
        token = tl.load(edge_token_ptr + edge, mask=from_edge, other=0).to(tl.int64)
        token = tl.where(in_tail, tail_token, token)
        if LIMITED:
            permitted = is_permitted(edge, from_edge, edge_ptr, begin, end, only, STEPS)
            mask = tl.where(from_edge, permitted, mask)
        logit = tl.load(row_ptr + token, mask=mask, other=-float("inf")).to(tl.float32)
        bad = bad | (
            tl.sum((mask & ((logit != logit) | (tl.abs(logit) == float("inf")))).to(tl.int32), 0) > 0
        )
        if RENORMALISE:
            higher = tl.maximum(shift, tl.max(logit, 0))
            safe = tl.where(higher == -float("inf"), 0.0, higher)
            total = total * tl.exp(shift - safe) + tl.sum(tl.exp(logit - safe), 0)
            shift = higher
        best = best_of_both(best, tl.topk(packed(logit, child), KEEP), KEEP)

    normaliser = shift + tl.log(total)
    bad = bad | (
        (count > 0) & (total > 0) & ((normaliser != normaliser) | (tl.abs(normaliser) == float("inf")))
    )
    bad = bad | (total != total)
    if bad:
        tl.atomic_max(bad_ptr, 1)
    kept = tl.arange(0, KEEP)
    score = before + (score_of(best) - normaliser)
    score = tl.where(best == NOTHING, -float("inf"), score)
    tl.store(out_score_ptr + row * KEEP + kept, score)
    tl.store(out_child_ptr + row * KEEP + kept, place_of(best))


@triton.jit
def merge_kernel(
    row_score_ptr, row_child_ptr, state_ptr, first_edge_ptr, edge_token_ptr, edge_target_ptr, tail_token_ptr,
    num_branch, beams, keep, score_ptr, beam_ptr, token_ptr, out_state_ptr,
    KEEP: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """One request: the best of its rows' best, with their tokens and next states."""
    request = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, ALL)
    score = tl.load(
        row_score_ptr + request * beams * KEEP + place, mask=place < beams * KEEP, other=-float("inf")
    )
    best = tl.topk(packed(score, place), KEEP)
    real = best != NOTHING
    place = tl.where(real, place_of(best), 0)
    row = request * beams + place // KEEP
    state = tl.load(state_ptr + row)
    child = tl.load(row_child_ptr + request * beams * KEEP + place)
    from_edge = real & (state < num_branch)
    in_tail = state >= num_branch
    edge = tl.load(first_edge_ptr + state, mask=from_edge, other=0) + child
    token = tl.load(edge_token_ptr + edge, mask=from_edge, other=0).to(tl.int32)
    after = tl.load(edge_target_ptr + edge, mask=from_edge, other=0)
    tail = tl.load(tail_token_ptr + (state - num_branch), mask=real & in_tail, other=0).to(tl.int32)
    kept = tl.arange(0, KEEP)
    out = request * keep + kept
    mask = kept < keep
    tl.store(score_ptr + out, score_of(best), mask=mask)
    tl.store(beam_ptr + out, tl.where(real, place // KEEP, 0), mask=mask)
    tl.store(token_ptr + out, tl.where(real, tl.where(in_tail, tail, token), -1), mask=mask)
    tl.store(out_state_ptr + out, tl.where(real, tl.where(in_tail, state + 1, after), -1), mask=mask)
