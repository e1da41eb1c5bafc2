"""SASRec: causality, padding, the loss written out, and the windows of long sequences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recloom.trainer.collaborative import sasrec
from recloom.trainer.collaborative.data import TopKData

SMALL = sasrec.Settings(embedding=8, max_length=6, heads=2)


@pytest.fixture
def backbone(topk: TopKData) -> sasrec.SASRec:
    torch.manual_seed(0)
    model = sasrec.SASRec.build(topk, SMALL).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_a_later_item_changes_no_earlier_output(backbone: sasrec.SASRec) -> None:
    inputs_BL = torch.tensor([[40, 40, 3, 7, 1, 9], [5, 6, 7, 8, 9, 10]])
    before = backbone.encode(inputs_BL)
    for changed in range(2, 6):
        other_BL = inputs_BL.clone()
        other_BL[:, changed] = 20
        after = backbone.encode(other_BL)
        torch.testing.assert_close(after[:, :changed], before[:, :changed])
        # without dropout every later position of a single attention net sees the change
        assert (after[:, changed:] - before[:, changed:]).abs().amax((0, 2)).min() > 1e-4


def test_padding_and_cut_change_nothing(backbone: sasrec.SASRec) -> None:
    """The same history in any padded width, and with older items than the model sees."""
    users_B, pad = torch.tensor([0]), backbone.num_items
    short = backbone.score(users_B, torch.tensor([[4, 5, 6]]))
    torch.testing.assert_close(backbone.score(users_B, torch.tensor([[pad, 4, 5, 6]])), short)
    torch.testing.assert_close(backbone.score(users_B, torch.tensor([[pad] * 9 + [4, 5, 6]])), short)
    full = backbone.score(users_B, torch.tensor([[1, 2, 3, 4, 5, 6]]))
    torch.testing.assert_close(backbone.score(users_B, torch.tensor([[9, 8, 1, 2, 3, 4, 5, 6]])), full)


def test_an_empty_history_has_finite_scores(backbone: sasrec.SASRec) -> None:
    empty_BL = torch.full((1, 6), backbone.num_items)
    assert torch.isfinite(backbone.score(torch.tensor([0]), empty_BL)).all()


def test_loss_by_hand(backbone: sasrec.SASRec) -> None:
    """The mean of -log softmax over the real positions only."""
    pad = backbone.num_items
    inputs_BL = torch.tensor([[pad, pad, pad, 1, 2, 3], [pad, pad, pad, pad, pad, 7]])
    targets_BL = torch.tensor([[pad, pad, pad, 2, 3, 4], [pad, pad, pad, pad, pad, 8]])
    hidden_BLD, items_ID = backbone.encode(inputs_BL).tolist(), backbone.item_vectors().tolist()
    terms = []
    for row, column in ((0, 3), (0, 4), (0, 5), (1, 5)):
        scores_I = [
            sum(h * w for h, w in zip(hidden_BLD[row][column], item, strict=True)) for item in items_ID
        ]
        target = int(targets_BL[row, column])
        terms.append(math.log(sum(math.exp(score) for score in scores_I)) - scores_I[target])
    assert abs(backbone.loss((inputs_BL, targets_BL)).item() - sum(terms) / 4) < 1e-4


@pytest.mark.parametrize("length", [0, 1, 2, 6, 7, 8, 13, 50])
def test_windows_make_every_later_item_a_target(backbone: sasrec.SASRec, length: int) -> None:
    rng = np.random.default_rng(length)
    for _ in range(10):
        windows = backbone.windows(np.arange(length), rng)
        assert all(2 <= len(window) <= 7 and (np.diff(window) == 1).all() for window in windows)
        targets = {int(item) for window in windows for item in window[1:]}
        assert targets == set(range(1, length))


def test_batches_are_shifted_by_one(backbone: sasrec.SASRec, topk: TopKData) -> None:
    seen = []
    for inputs_BL, targets_BL in backbone.batches(topk, np.random.default_rng(0)):
        for inputs_L, targets_L in zip(inputs_BL.tolist(), targets_BL.tolist(), strict=True):
            row = [*inputs_L, targets_L[-1]]
            assert row[1:] == targets_L
            seen.append([item for item in row if item != topk.num_items])
    assert sorted(seen) == sorted(items.tolist()[-7:] for items in topk.sequences)


def test_batches_are_as_wide_as_their_longest_sequence(topk: TopKData) -> None:
    """And their loss is that of the same sequences in the model's full width."""
    settings = sasrec.Settings(embedding=8, max_length=20, batch_size=2)
    model = sasrec.SASRec.build(topk, settings).eval()
    widths = set()
    for inputs_BL, targets_BL in model.batches(topk, np.random.default_rng(0)):
        assert (inputs_BL != topk.num_items).any(0).all()
        wide = [
            torch.nn.functional.pad(part, (20 - part.shape[1], 0), value=topk.num_items)
            for part in (inputs_BL, targets_BL)
        ]
        torch.testing.assert_close(model.loss((inputs_BL, targets_BL)), model.loss((wide[0], wide[1])))
        widths.add(inputs_BL.shape[1])
    assert len(widths) > 1 and max(widths) < 20
