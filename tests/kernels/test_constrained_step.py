"""The constrained step in its three forms against one written with Python lists."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.kernels import constrained_step_gpu
from recloom.kernels.constrained_step import constrained_step
from recloom.kernels.constrained_step_gpu import merge_kernel, row_kernel
from recloom.kernels.token_trie import TokenTrie
from recloom.kernels.trie_build import trie_of
from recloom.kernels.trie_restrictions import Restrictions, restrict

sys.path.insert(0, str(Path(__file__).parent))
from catalogues import END
from triton_tools import CAPABILITIES, compiled, interpret


def catalogue(seed: int, vocab: int, size: int) -> TokenTrie:
    random = np.random.default_rng(seed)
    few = min(vocab, 40)
    items = [random.integers(2, few, random.integers(1, 3)).tolist() for _ in range(size)]
    return trie_of(
        [[*item, *random.integers(2, vocab, random.integers(0, 4)).tolist()] for item in items],
        end_token=END,
        vocab_size=vocab,
    )


Case = tuple[torch.Tensor, TokenTrie, torch.Tensor, torch.Tensor]


def case(seed: int, requests: int, beams: int, vocab: int, dtype: torch.dtype = torch.float32) -> Case:
    """Logits, a trie, random states (ends and tails among them) and scores, one beam of several dead."""
    trie = catalogue(seed, vocab, 60)
    torch.manual_seed(seed)
    logits = (3 * torch.randn(requests * beams, vocab)).to(dtype)
    states = torch.randint(0, trie.num_states, (requests, beams), dtype=torch.int32)
    states[:, 0] = 0
    scores = -5 * torch.rand(requests, beams)
    if beams > 1:
        scores[-1, 1] = -torch.inf
    return logits, trie, states, scores


def by_hand(
    logits_RV: torch.Tensor,
    trie: TokenTrie,
    states_BM: torch.Tensor,
    scores_BM: torch.Tensor,
    keep: int,
    limits: Restrictions | None,
    renormalise: bool,
) -> list[list[tuple[float, int, int, int]]]:
    """(score, beam, token, state) of each request, best first, in float64."""
    found = []
    for b, (states, scores) in enumerate(zip(states_BM.tolist(), scores_BM.tolist(), strict=True)):
        rows = []
        for m, (state, score) in enumerate(zip(states, scores, strict=True)):
            if score == -np.inf:
                continue
            tokens, targets = trie.children(state)
            if limits is not None and state < trie.num_branch_states:
                first = int(trie.first_edge_S1[state])
                fine = limits.permits(b, np.arange(first, first + len(tokens)))
                tokens, targets = tokens[fine], targets[fine]
            logits = logits_RV[b * len(states) + m].double().numpy()
            total = np.logaddexp.reduce(logits[tokens] if renormalise else logits) if len(tokens) else 0.0
            rows += [
                (score + logits[t] - total, m, int(t), int(s)) for t, s in zip(tokens, targets, strict=True)
            ]
        found.append(sorted(rows, key=lambda row: (-row[0], row[1], row[2]))[:keep])
    return found


def assert_equal(
    arrays: Case, keep: int, limits: Restrictions | None, renormalise: bool, backend: str | None
) -> None:
    step = constrained_step(*arrays, keep, limits, renormalise, backend)
    wanted = by_hand(*arrays, keep, limits, renormalise)
    for b, rows in enumerate(wanted):
        count = len(rows)
        got = [x[b].tolist() for x in (step.score_BK, step.beam_BK, step.token_BK, step.state_BK)]
        assert got[0][:count] == pytest.approx([row[0] for row in rows], rel=1e-6, abs=1e-5)
        assert list(zip(*(x[:count] for x in got[1:]), strict=True)) == [row[1:] for row in rows]
        assert got[0][count:] == [-np.inf] * (keep - count)
        assert set(got[2][count:] + got[3][count:]) <= {-1}


SHAPES = [(1, 1, 41, 1), (3, 4, 127, 6), (2, 7, 129, 33), (5, 3, 4099, 2)]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_equal_the_sorted_list(shape: tuple[int, ...], renormalise: bool, backend: str) -> None:
    requests, beams, vocab, keep = shape
    for seed in range(3):
        arrays = case(seed, requests, beams, vocab)
        limits = restrict(arrays[1], excluded=[[b, 5, 7] for b in range(requests)])
        candidates = restrict(arrays[1], allowed=[[b, 9, 11] if b % 2 else None for b in range(requests)])
        for own in (None, limits, candidates):
            assert_equal(arrays, keep, own, renormalise, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("backend", ["reference", "cpu", None])
def test_number_formats(dtype: torch.dtype, backend: str | None) -> None:
    assert_equal(case(4, 3, 4, 127, dtype), 5, None, False, backend)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.booleans())
def test_random_steps(seed: int, requests: int, beams: int, keep: int, renormalise: bool) -> None:
    assert_equal(case(seed, requests, beams, 41), keep, None, renormalise, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_larger_logits_behind_the_first_words(dtype: torch.dtype) -> None:
    """The shift taken from the first words is 100 to 10,000 too low, or there is nothing but -inf there."""
    logits, trie, states, scores = case(7, 2, 3, 4500, dtype)
    for row, value in enumerate((80.0, 100.0, 300.0, 1e4)):
        logits[row, 4300 + row] = value
    assert_equal((logits, trie, states, scores), 5, None, False, "cpu")
    logits[4, :4096] = torch.where(
        torch.isin(torch.arange(4096), torch.tensor(trie.edge_token_E.astype("i8"))), 0, -torch.inf
    )
    assert_equal((logits, trie, states, scores), 5, None, False, "cpu")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_equal_scores_stay_in_order(backend: str) -> None:
    logits, trie, states, scores = case(1, 2, 3, 41)
    states[:], scores[:] = 0, -1.0
    assert_equal((torch.zeros_like(logits), trie, states, scores), 8, None, False, backend)


def test_a_padded_head_counts_for_the_normaliser() -> None:
    logits, trie, states, scores = case(2, 2, 3, 41)
    wide = torch.cat((logits, torch.randn(6, 23)), 1)
    assert_equal((wide, trie, states, scores), 4, None, False, "cpu")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_refused(value: float, backend: str) -> None:
    logits, trie, states, scores = case(3, 2, 2, 41)
    logits[2, 40] = value  # no child, still part of the normaliser
    with pytest.raises(ValueError, match="NaN, "):
        constrained_step(logits, trie, states, scores, 3, backend=backend)
    scores[1, 0] = -torch.inf  # a dead beam's logits are not read
    constrained_step(logits, trie, states, scores, 3, backend=backend)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_child_of_probability_0_is_refused(backend: str) -> None:
    logits, trie, states, scores = case(3, 1, 1, 41)
    logits[0, trie.children(0)[0]] = -torch.inf
    with pytest.raises(ValueError, match="-inf at a permitted token"):
        constrained_step(logits, trie, states, scores, 50, backend=backend)


def test_arguments_that_do_not_fit() -> None:
    logits, trie, states, scores = case(3, 2, 2, 41)
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((logits[:3], trie, states, scores, 3), "4 beams need floats of shape"),
        ((logits[:, :40], trie, states, scores, 3), "40 words, the trie 41"),
        ((logits, trie, states.float(), scores, 3), "integers and floats of one shape"),
        ((logits, trie, states, scores[:1], 3), "integers and floats of one shape"),
        ((logits, trie, states, scores, 0), "keep is 0"),
        ((logits, trie, states + trie.num_states, scores, 3), "not of this trie"),
        ((logits, trie, states, scores, 3, restrict(trie, allowed=[[0]])), "1 rows for 2 requests"),
        ((logits, trie, states, scores, 3, None, False, "cuda"), "backend is 'cuda'"),
    ]
    for arguments, said in wrong:
        with pytest.raises(ValueError, match=said):
            constrained_step(*arguments)
    with pytest.raises(ValueError, match="not of this trie"):
        constrained_step(logits, trie, states - 1, scores, 3, backend="reference")


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("limited", [False, True])
def test_triton_in_the_interpreter(monkeypatch: pytest.MonkeyPatch, renormalise: bool, limited: bool) -> None:
    interpret(constrained_step_gpu, monkeypatch)
    monkeypatch.setattr(constrained_step_gpu, "WORDS_BLOCK", 64)
    monkeypatch.setattr(constrained_step_gpu, "CHILDREN_BLOCK", 16)
    arrays = case(5, 2, 3, 129)
    limits = restrict(arrays[1], allowed=[[1, 9, 20], None], excluded=[None, [4, 5]]) if limited else None
    assert_equal(arrays, 5, limits, renormalise, "triton")


def test_triton_keeps_the_order_of_equal_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(constrained_step_gpu, monkeypatch)
    monkeypatch.setattr(constrained_step_gpu, "CHILDREN_BLOCK", 16)
    logits, trie, states, scores = case(1, 1, 3, 41)
    states[:], scores[:] = 0, -1.0
    assert_equal((torch.zeros_like(logits), trie, states, scores), 8, None, False, "triton")
    logits[0, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        constrained_step(logits, trie, states, scores, 3, backend="triton")


TRIE_TYPES = {
    "state_ptr": "*i32",
    "first_edge_ptr": "*i32",
    "edge_token_ptr": "*u16",
    "edge_target_ptr": "*i32",
    "tail_token_ptr": "*u16",
    "num_branch": "i32",
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("limited", [False, True])
def test_kernels_compile_for_gpus(capability: int, limited: bool) -> None:
    row = {
        "logits_ptr": "*bf16", "row_stride": "i64", "words": "i32", "score_ptr": "*fp32", **TRIE_TYPES,
        "end_mark": "i32", "offset_ptr": "*i64", "edge_ptr": "*i32", "only_ptr": "*i32", "beams": "i32",
        "out_score_ptr": "*fp32", "out_child_ptr": "*i32", "bad_ptr": "*i32",
    }  # fmt: skip
    constants = {
        "RENORMALISE": False, "STEPS": 12, "LIMITED": limited, "KEEP": 32, "WORDS": 4096, "CHILDREN": 256,
    }  # fmt: skip
    signature = {name: "constexpr" if name in constants else row[name] for name in row_kernel.arg_names}
    assert compiled(row_kernel, signature, constants, capability)
    merge = {
        "row_score_ptr": "*fp32", "row_child_ptr": "*i32", **TRIE_TYPES, "beams": "i32", "keep": "i32",
        "score_ptr": "*fp32", "beam_ptr": "*i32", "token_ptr": "*i32", "out_state_ptr": "*i32",
    }  # fmt: skip
    constants = {"KEEP": 32, "ALL": 1024}
    signature = {name: "constexpr" if name in constants else merge[name] for name in merge_kernel.arg_names}
    assert compiled(merge_kernel, signature, constants, capability)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("renormalise", [False, True])
def test_the_same_on_a_gpu(dtype: torch.dtype, renormalise: bool) -> None:
    arrays = case(6, 4, 5, 32_001, dtype)
    limits = restrict(arrays[1], allowed=[[1, 9, 20], None, None, [3]], excluded=[None, [4, 5], None, None])
    for own in (None, limits):
        wanted = constrained_step(*arrays, 10, own, renormalise, "reference")
        logits, trie, states, scores = arrays
        torch.cuda.set_sync_debug_mode("error")
        on_gpu = constrained_step(logits.cuda(), trie, states.cuda(), scores.cuda(), 10, own, renormalise)
        torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(on_gpu.token_BK.cpu(), wanted.token_BK)
        assert torch.equal(on_gpu.state_BK.cpu(), wanted.state_BK)
        assert torch.allclose(on_gpu.score_BK.cpu(), wanted.score_BK, atol=1e-4)
