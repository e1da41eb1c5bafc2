"""Layouts with soft rows against lists built in Python, over random batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.kernels.soft_layout import mark, surround_packed, surround_padded

PAD, PAD_LABEL = 77, -5


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """Samples of token ids with labels, and each sample's soft rows."""
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    L, K = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    samples = [[10 * s + t for t in range(length)] for s, length in enumerate(lengths)]
    shared = draw(st.booleans())
    row = st.integers(0, 20)
    prefix = draw(st.lists(row, min_size=L, max_size=L)) if shared else None
    suffix = draw(st.lists(row, min_size=K, max_size=K)) if shared else None
    prefixes = [prefix or draw(st.lists(row, min_size=L, max_size=L)) for _ in samples]
    suffixes = [suffix or draw(st.lists(row, min_size=K, max_size=K)) for _ in samples]
    return {
        "samples": samples,
        "prefixes": prefixes,
        "suffixes": suffixes,
        "shared": shared,
        "spare": draw(st.integers(0, 2)),
        "left": draw(st.booleans()),
        "after": draw(st.integers(0, 3)),
    }


def soft(rows: list[list[int]], shared: bool) -> torch.Tensor:
    rows_SL = torch.tensor(rows, dtype=torch.long)
    return rows_SL[0] if shared else rows_SL


def longer(batch: dict[str, Any], sample: int) -> tuple[list[int], list[int]]:
    """Source and labels of a sample with its soft rows; the label of token t is 1000 + t."""
    prefix, tokens, suffix = (batch[name][sample] for name in ("prefixes", "samples", "suffixes"))
    first, rest = tokens[: batch["after"]], tokens[batch["after"] :]
    source = first + [-1 - row for row in prefix] + rest + [-1 - row for row in suffix]
    labels = [-100 if value < 0 else 1000 + value for value in source]
    return source, labels


def padded(values: list[int], width: int, fill: int, left: bool) -> list[int]:
    padding = [fill] * (width - len(values))
    return padding + values if left else values + padding


@settings(deadline=None, max_examples=120)
@given(batches())
def test_padded_equals_lists(batch: dict[str, Any]) -> None:
    samples = batch["samples"]
    width = max(map(len, samples)) + batch["spare"]
    # A row without tokens shows no side and counts as padded on the right; its content is the same.
    left = [batch["left"] and bool(tokens) for tokens in samples]
    ids = [padded(tokens, width, PAD, side) for tokens, side in zip(samples, left, strict=True)]
    masks = [padded([1] * len(tokens), width, 0, side) for tokens, side in zip(samples, left, strict=True)]
    labels = [
        padded([1000 + token for token in tokens], width, PAD_LABEL, side)
        for tokens, side in zip(samples, left, strict=True)
    ]
    out = surround_padded(
        torch.tensor(ids, dtype=torch.long).view(len(samples), width),
        torch.tensor(masks, dtype=torch.long).view(len(samples), width),
        soft(batch["prefixes"], batch["shared"]),
        soft(batch["suffixes"], batch["shared"]),
        torch.tensor(labels, dtype=torch.long).view(len(samples), width),
        batch["after"],
    )
    width += len(batch["prefixes"][0]) + len(batch["suffixes"][0])
    assert out.labels_BU is not None and out.source_BU.shape == (len(samples), width)
    for s, side in enumerate(left):
        source, label = longer(batch, s)
        assert out.source_BU[s].tolist() == padded(source, width, PAD, side)
        assert out.labels_BU[s].tolist() == padded(label, width, PAD_LABEL, side)
        assert out.mask_BU[s].tolist() == padded([1] * len(source), width, 0, side)
        assert out.positions_BU[s].tolist() == padded(list(range(len(source))), width, 0, side)


@settings(deadline=None, max_examples=120)
@given(batches())
def test_packed_equals_lists(batch: dict[str, Any]) -> None:
    tokens = [token for sample in batch["samples"] for token in sample]
    boundaries = torch.tensor([0, *map(len, batch["samples"])]).cumsum(0).to(torch.int32)
    out = surround_packed(
        torch.tensor(tokens, dtype=torch.long),
        boundaries,
        soft(batch["prefixes"], batch["shared"]),
        soft(batch["suffixes"], batch["shared"]),
        torch.tensor([1000 + token for token in tokens], dtype=torch.long),
        batch["after"],
    )
    expected = [longer(batch, s) for s in range(len(batch["samples"]))]
    lengths = [len(source) for source, _ in expected]
    assert out.labels_W is not None
    assert out.source_W.tolist() == [value for source, _ in expected for value in source]
    assert out.labels_W.tolist() == [value for _, labels in expected for value in labels]
    assert out.positions_W.tolist() == [place for length in lengths for place in range(length)]
    assert out.cu_seqlens_S1.tolist() == torch.tensor([0, *lengths]).cumsum(0).tolist()
    assert out.cu_seqlens_S1.dtype == torch.int32


def test_mark_and_slots_move_along() -> None:
    ids_BT, slots_BT = torch.tensor([[5, 9, 6, 0]]), torch.tensor([[-1, 4, -1, -1]])
    source_BT = mark(ids_BT, slots_BT)
    assert source_BT.tolist() == [[5, -5, 6, 0]]
    out = surround_padded(source_BT, torch.tensor([[True, True, True, False]]), torch.tensor([0]))
    assert out.source_BU.tolist() == [[-1, 5, -5, 6, 0]]
    assert out.mask_BU.tolist() == [[True, True, True, True, False]] and out.labels_BU is None


def test_nothing_to_insert() -> None:
    ids_BT = torch.arange(6).view(2, 3)
    out = surround_padded(ids_BT, torch.ones_like(ids_BT))
    assert torch.equal(out.source_BU, ids_BT) and out.positions_BU.tolist() == [[0, 1, 2]] * 2
    packed = surround_packed(torch.arange(3), torch.tensor([0, 1, 3]))
    assert packed.source_W.tolist() == [0, 1, 2] and packed.positions_W.tolist() == [0, 0, 1]


IDS, MASK, ROW = torch.arange(6).view(2, 3), torch.ones(2, 3, dtype=torch.long), torch.arange(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mark(IDS.int(), IDS), "ids: dtype torch.int32, must be torch.int64"),
        (lambda: mark(IDS, IDS.float()), "slots: dtype torch.float32"),
        (lambda: mark(IDS, IDS[0]), r"slots: shape \(3,\), must be \(2, 3\)"),
        (lambda: mark(IDS - 1, IDS), "ids: must be at least 0, .*found -1"),
        (lambda: mark(IDS, IDS - 2), "slots: must be at least -1, .*found -2"),
        (lambda: surround_padded(ROW, ROW), "source: .*2 dimensions.*surround_packed"),
        (lambda: surround_padded(IDS, MASK[:1]), r"mask: shape \(1, 3\), must be \(2, 3\)"),
        (lambda: surround_padded(IDS, MASK.float()), "mask: dtype torch.float32"),
        (lambda: surround_padded(IDS, 2 * MASK), "mask: must be one run of ones"),
        (lambda: surround_padded(IDS, torch.tensor([[1, 0, 1]] * 2)), "mask: must be one run of ones"),
        (lambda: surround_padded(IDS, MASK, -ROW), "prefix: must be at least 0, .*found -2"),
        (lambda: surround_padded(IDS, MASK, None, IDS[:1]), r"suffix: shape \(1, 3\), must be \(2, 3\)"),
        (lambda: surround_padded(IDS, MASK, torch.tensor(1)), r"prefix: shape \(\), must be"),
        (lambda: surround_padded(IDS, MASK, labels_BT=ROW), "labels: shape"),
        (lambda: surround_packed(IDS, ROW), "source: .*1 dimensions.*surround_padded"),
        (lambda: surround_packed(ROW, torch.tensor([0, 2])), "cu_seqlens: must ascend from 0 to the 3"),
        (lambda: surround_packed(ROW, torch.tensor([1, 3])), "cu_seqlens: must ascend"),
        (lambda: surround_packed(ROW, torch.tensor([0, 2, 1, 3])), "cu_seqlens: must ascend"),
        (lambda: surround_packed(ROW, torch.tensor([0.0, 3.0])), "cu_seqlens: dtype torch.float32"),
        (lambda: surround_packed(ROW, torch.empty(0, dtype=torch.long)), r"cu_seqlens: shape \(0,\)"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
def test_nothing_waits_for_a_gpu() -> None:
    ids, mask, rows = IDS.cuda(), MASK.cuda(), ROW.cuda()
    boundaries = torch.tensor([0, 2, 6]).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        padded_out = surround_padded(mark(ids, ids), mask, rows, rows, ids)
        packed_out = surround_packed(ids.flatten(), boundaries, rows, rows, ids.flatten())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(
        padded_out.source_BU.cpu(), surround_padded(mark(IDS, IDS), MASK, ROW, ROW, IDS).source_BU
    )
    on_cpu = surround_packed(IDS.flatten(), boundaries.cpu(), ROW, ROW, IDS.flatten())
    assert torch.equal(packed_out.source_W.cpu(), on_cpu.source_W)
