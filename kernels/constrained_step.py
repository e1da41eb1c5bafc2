"""One decode step for all rows: normalise, restrict to the trie's children, keep the best, go on.

    step = constrained_step(logits_RV, trie, states_BM, scores_BM, keep=2 * num_beams)

Shape letters: B requests of M beams, R = B * M rows of logits (row b * M + m), V words, K kept continuations,
C children of a state; S, E, T as in `token_trie.py`.

Three forms of one result: plain PyTorch (`reference`), one compiled pass over the logits on a CPU
(`constrained_step_cpu.py`), two Triton kernels on a GPU (`constrained_step_gpu.py`). What they save against
masking all V log-probabilities (Hugging Face) or writing them out (STATIC, arXiv 2602.22647) is the write of
R x V numbers: a row is read once for its normaliser, and only the C children are looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recloom.kernels.constrained_step_cpu import step_on_cpu
from recloom.kernels.constrained_step_gpu import step_on_gpu
from recloom.kernels.token_trie import TokenTrie
from recloom.kernels.trie_restrictions import Restrictions
from recloom.kernels.trie_tensors import TrieTensors, restriction_tensors, trie_tensors

BACKENDS = ("reference", "cpu", "triton")
CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Step:
    """The best continuations of each request, best first; what is lacking has score -inf, token and state -1.

    score_BK: sum of log-probabilities, fp32. beam_BK: the beam continued. token_BK, state_BK: the token and
    the state behind it. Equal scores stand in the order of beam, then token.
    """

    score_BK: torch.Tensor
    beam_BK: torch.Tensor
    token_BK: torch.Tensor
    state_BK: torch.Tensor


def constrained_step(
    logits_RV: torch.Tensor,
    trie: TokenTrie,
    states_BM: torch.Tensor,
    scores_BM: torch.Tensor,
    keep: int,
    restrictions: Restrictions | None = None,
    renormalise: bool = False,
    backend: str | None = None,
) -> Step:
    """The `keep` best continuations of each request that stay in the trie.

    Args:
        logits_RV: fp32, bf16 or fp16, contiguous rows; the last words' logits of a padded head are allowed
            (V at least trie.vocab_size) and count for the normaliser.
        states_BM: integers, the trie's state of each beam; at an end nothing follows.
        scores_BM: fp32, each beam's score so far; -inf marks a beam that is none, its logits are not read.
        restrictions: one row a request (`trie_restrictions.restrict`), or None.
        renormalise: divide by the sum over the permitted children, not over the vocabulary.
        backend: one of BACKENDS; None takes "triton" for CUDA tensors, "cpu" for others.

    Errors: ValueError for shapes that do not fit, a state outside the trie, a NaN or +inf in a row that is
    read, and -inf at a permitted child (on a GPU the last three raise at the next synchronisation).
    """
    check_shapes(logits_RV, trie, states_BM, scores_BM, keep, restrictions)
    chosen = pick(backend, logits_RV)
    if chosen == "cpu":
        arrays = step_on_cpu(logits_RV, trie, states_BM, scores_BM, keep, restrictions, renormalise)
    else:
        run = step_on_gpu if chosen == "triton" else reference
        device = logits_RV.device
        tensors = trie_tensors(trie, device)
        states_BM = checked_states(states_BM.to(device, torch.int32), trie)
        own = restriction_tensors(restrictions, len(states_BM), device)
        arrays = run(logits_RV, tensors, states_BM, scores_BM.to(device), keep, own, renormalise)
    return Step(*arrays)


def pick(backend: str | None, logits_RV: torch.Tensor) -> str:
    if backend is None:
        if logits_RV.is_cuda:
            return "triton"
        return "cpu" if logits_RV.dtype in CPU_DTYPES and logits_RV.device.type == "cpu" else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: take one of {', '.join(BACKENDS)}, or None.")
    return backend


def check_shapes(
    logits_RV: torch.Tensor,
    trie: TokenTrie,
    states_BM: torch.Tensor,
    scores_BM: torch.Tensor,
    keep: int,
    restrictions: Restrictions | None,
) -> None:
    if states_BM.ndim != 2 or states_BM.is_floating_point() or scores_BM.shape != states_BM.shape:
        raise ValueError(
            f"states_BM {tuple(states_BM.shape)} {states_BM.dtype} and scores_BM {tuple(scores_BM.shape)}: "
            "give integers and floats of one shape (requests, beams)."
        )
    rows, words = states_BM.numel(), logits_RV.shape[-1]
    if logits_RV.ndim != 2 or len(logits_RV) != rows or not logits_RV.is_floating_point():
        raise ValueError(
            f"logits_RV is {tuple(logits_RV.shape)} {logits_RV.dtype}: {rows} beams need floats of shape "
            f"({rows}, vocabulary)."
        )
    if words < trie.vocab_size:
        raise ValueError(
            f"logits_RV has {words} words, the trie {trie.vocab_size}: build it with the model's tokenizer."
        )
    if keep < 1:
        raise ValueError(f"keep is {keep}: at least 1 continuation must be kept.")
    if restrictions is not None and len(restrictions) != len(states_BM):
        raise ValueError(
            f"restrictions have {len(restrictions)} rows for {len(states_BM)} requests: give one each."
        )


def checked_states(states_BM: torch.Tensor, trie: TokenTrie) -> torch.Tensor:
    """The states, when all are the trie's; on a GPU the check does not wait."""
    inside = ((states_BM >= 0) & (states_BM < trie.num_states)).all()
    if states_BM.is_cuda:
        torch._assert_async(inside, "states_BM holds a state that is not of this trie")
    elif not inside:
        trie.check_states(states_BM.numpy())
    return states_BM


def reference(
    logits_RV: torch.Tensor,
    trie: TrieTensors,
    states_BM: torch.Tensor,
    scores_BM: torch.Tensor,
    keep: int,
    restrictions: tuple[torch.Tensor, ...],
    renormalise: bool,
) -> tuple[torch.Tensor, ...]:
    """The step in plain PyTorch: all log-probabilities, then those of all children, then a stable sort."""
    requests, beams = states_BM.shape
    token_RC, state_RC, edge_RC, is_child_RC = children(trie, states_BM.reshape(-1))
    request_R = torch.arange(requests, device=states_BM.device).repeat_interleave(beams)
    is_child_RC &= permitted(restrictions, request_R, edge_RC) | (edge_RC < 0)
    alive_R1 = (scores_BM.reshape(-1, 1) > -torch.inf) & is_child_RC.any(1, keepdim=True)
    is_child_RC &= alive_R1
    logits_RV = torch.where(alive_R1, logits_RV.float(), 0.0)
    logit_RC = logits_RV.gather(1, token_RC.clamp(min=0)).masked_fill(~is_child_RC, -torch.inf)
    total_R1 = (logit_RC if renormalise else logits_RV).logsumexp(1, keepdim=True)
    check_finite(total_R1.isfinite() | ~alive_R1, (logit_RC > -torch.inf) == is_child_RC)
    score_RC = torch.where(is_child_RC, scores_BM.reshape(-1, 1).float() + logit_RC - total_R1, -torch.inf)
    width = token_RC.shape[1]
    score_BX, order_BX = score_RC.reshape(requests, -1).sort(dim=1, descending=True, stable=True)
    lacking = max(0, keep - score_BX.shape[1])
    score_BK = torch.nn.functional.pad(score_BX, (0, lacking), value=-torch.inf)[:, :keep]
    order_BK = torch.nn.functional.pad(order_BX, (0, lacking))[:, :keep]
    real_BK = score_BK > -torch.inf
    found = (
        order_BK // width,
        *(x.reshape(requests, -1).gather(1, order_BK).where(real_BK, -1) for x in (token_RC, state_RC)),
    )
    return score_BK, *(x.to(torch.int32) for x in found)


def children(trie: TrieTensors, states_R: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(tokens, states behind them, edges or -1 in a tail, which of them exist), each R x C."""
    num_branch = len(trie.first_edge_S1) - 1
    slot_R = states_R.long() - num_branch
    in_tail_R = slot_R >= 0
    branch_R = states_R.long().clamp(max=num_branch - 1)
    first_R = trie.first_edge_S1[branch_R].long()
    tail_R = trie.tail_token_T[slot_R.clamp(min=0)].long()
    count_R = torch.where(in_tail_R, (tail_R != trie.end).long(), trie.first_edge_S1[branch_R + 1] - first_R)
    place_C = torch.arange(max(1, int(count_R.max())), device=states_R.device)
    exists_RC = place_C < count_R[:, None]
    edge_RC = torch.where(in_tail_R[:, None] | ~exists_RC, -1, first_R[:, None] + place_C)
    safe_RC = edge_RC.clamp(min=0)
    token_RC = torch.where(in_tail_R[:, None], tail_R[:, None], trie.edge_token_E[safe_RC].long())
    state_RC = torch.where(in_tail_R[:, None], states_R[:, None] + 1, trie.edge_target_E[safe_RC])
    return token_RC.where(exists_RC, -1), state_RC.where(exists_RC, -1), edge_RC, exists_RC


def permitted(
    restrictions: tuple[torch.Tensor, ...], request_R: torch.Tensor, edge_RC: torch.Tensor
) -> torch.Tensor:
    """Which edges the rows' requests may take."""
    offset_B1, edge_P, only_B = restrictions
    requests = len(only_B)
    owner_P = torch.arange(requests, device=edge_P.device).repeat_interleave(offset_B1.diff())
    stride = 2**31
    wanted_RC = request_R[:, None] * stride + edge_RC.clamp(min=0)
    found_RC = torch.isin(wanted_RC, owner_P * stride + edge_P)
    return found_RC == only_B.bool()[request_R][:, None]


def check_finite(normalisers_ok: torch.Tensor, children_ok: torch.Tensor) -> None:
    fine = normalisers_ok.all() & children_ok.all()
    message = "logits_RV holds NaN, +inf, or -inf at a permitted token: check the model's output"
    if fine.is_cuda:
        torch._assert_async(fine, message)
    elif not fine:
        raise ValueError(f"{message}.")
