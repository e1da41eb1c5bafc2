"""Samples of a row that begin alike: what is shared, and that losses and gradients stay.

Shapes: T tokens of a row, A wanted positions.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from recloom.data_shards.renderer import SlotPosition
from recloom.data_shards.stream import IGNORE, PackedRow
from recloom.trainer import shared_beginnings
from recloom.trainer.loss import answer_loss, model_inputs
from recloom.trainer.packed_attention import PACKED
from recloom.trainer.shared_beginnings import SHORTEST, share_beginnings

CPU = torch.device("cpu")
Sample = tuple[list[int], int]  # tokens, and how many of them are the prompt's
ALIKE = list(range(1, 13))  # what some samples begin with
SAMPLES: list[Sample] = [
    ([*ALIKE, 20, 21, 22, 30], 15),
    ([*ALIKE, 20, 23, 31, 32], 14),
    ([40, 41, 42], 2),
    ([*ALIKE, 20, 23, 24, 31], 15),
    ([*ALIKE, 20, 21, 22, 33], 15),  # the prompt of the first
]


def row_of(samples: list[Sample], slots: list[SlotPosition] | None = None) -> PackedRow:
    ids = [token for tokens, _ in samples for token in tokens]
    labels = [
        token if place >= max(prompt, 1) else IGNORE
        for tokens, prompt in samples
        for place, token in enumerate(tokens)
    ]
    lengths = [len(tokens) for tokens, _ in samples]
    places = [place for length in lengths for place in range(length)]
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    tensors = (torch.tensor(ids), torch.tensor(places), torch.tensor(labels))
    return PackedRow(*tensors, list(range(len(samples))), bounds, slots)


def wanted(row: PackedRow) -> Tensor:
    return torch.nonzero(row.labels_T[1:] != IGNORE)[:, 0]


@st.composite
def alike_samples(draw: st.DrawFn) -> list[Sample]:
    """Samples that go along a few texts for a while."""
    texts = [draw(st.lists(st.integers(0, 2), min_size=SHORTEST, max_size=4 * SHORTEST)) for _ in range(2)]
    samples = []
    for _ in range(draw(st.integers(1, 6))):
        text = draw(st.sampled_from(texts))
        tokens = text[: draw(st.integers(0, len(text)))] + draw(st.lists(st.integers(0, 2), min_size=1))
        samples.append((tokens, draw(st.integers(0, len(tokens)))))
    return samples


@settings(max_examples=200, derandomize=True, deadline=None)
@given(samples=alike_samples())
def test_every_sample_still_sees_its_own_tokens(samples: list[Sample]) -> None:
    row = row_of(samples)
    keep_A = wanted(row)
    shared = share_beginnings(row, keep_A)
    ids, places = shared.row.ids_T.tolist(), shared.row.position_ids_T.tolist()
    bounds = shared.row.boundaries.tolist()
    assert bounds[-1] == len(ids) == len(places) == len(shared.row.labels_T)
    for (tokens, _), (start, end), before in zip(samples, pairwise(bounds), shared.before_S, strict=True):
        assert start < end, "each sample has a token of its own"
        path = [place for a, b in (*before, (start, end)) for place in range(a, b)]
        assert [ids[place] for place in path] == tokens
        assert [places[place] for place in path] == list(range(len(tokens)))
        assert all(b <= start for _, b in before), "what is seen stands in front"
        assert sum(b - a for a, b in before) not in range(1, SHORTEST)
    assert len(set(shared.keep_A.tolist())) == len(keep_A), "each wanted position is a sample's own"
    assert shared.row.ids_T[shared.keep_A].tolist() == row.ids_T[keep_A].tolist()
    assert shared.row.labels_T[shared.keep_A].tolist() == row.labels_T[keep_A].tolist()


def test_the_longest_common_beginning_is_shared() -> None:
    """Also along what an earlier sample does not compute itself; wanted positions stay a sample's own."""
    row = row_of(SAMPLES)
    shared = share_beginnings(row, wanted(row))
    assert shared.before_S == [(), ((0, 13),), (), ((0, 13), (16, 17)), ((0, 14),)]
    assert len(shared.row.ids_T) == len(row.ids_T) - 13 - 14 - 14


def test_nothing_in_common_changes_nothing() -> None:
    row = row_of([([1, 2, 3], 1), ([1, 2, 4], 1)])
    inputs = model_inputs(row, wanted(row), PACKED, CPU)
    assert "before" not in inputs and inputs["input_ids"][0].tolist() == row.ids_T.tolist()


def test_slots_are_not_shared() -> None:
    """A token at a slot looks like any other slot's."""
    row = row_of(SAMPLES, [(0, "user", "1"), (16, "user", "2")])
    inputs = model_inputs(row, wanted(row), PACKED, CPU)
    assert "before" not in inputs and inputs["input_ids"].shape[1] == len(row.ids_T)


def network(dtype: torch.dtype, attention: str) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=64, num_hidden_layers=2, attn_implementation=attention, **sizes)
    return LlamaForCausalLM(config).to(dtype)


def loss_and_gradients(row: PackedRow, dtype: torch.dtype, attention: str) -> list[Tensor]:
    model = network(dtype, attention)
    loss = answer_loss(model, row, attention, CPU)
    loss.backward()
    return [loss.detach(), *(weight.grad for weight in model.parameters())]


def test_loss_and_gradients_are_those_of_a_dense_mask() -> None:
    row = row_of(SAMPLES)
    found, dense = (loss_and_gradients(row, torch.float32, name) for name in (PACKED, "sdpa"))
    for ours, theirs in zip(found, dense, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_attention_by_blocks_takes_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 on a CPU: near the same row without sharing, whose tokens are more."""
    row = row_of(SAMPLES)
    found = loss_and_gradients(row, torch.bfloat16, PACKED)
    monkeypatch.setattr(shared_beginnings, "SHORTEST", 1000)
    assert "before" not in model_inputs(row, wanted(row), PACKED, CPU)
    for ours, theirs in zip(found, loss_and_gradients(row, torch.bfloat16, PACKED), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02)
