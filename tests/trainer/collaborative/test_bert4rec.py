"""BERT4Rec: the masks, the loss written out, both directions, and what scoring looks at."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recloom.trainer.collaborative import bert4rec
from recloom.trainer.collaborative.data import TopKData

SMALL = bert4rec.Settings(embedding=8, max_length=6, heads=2)


@pytest.fixture
def backbone(topk: TopKData) -> bert4rec.BERT4Rec:
    torch.manual_seed(0)
    model = bert4rec.BERT4Rec.build(topk, SMALL).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_masks(backbone: bert4rec.BERT4Rec) -> None:
    """Real positions only, at least one a row, the share rho and the share of last-only rows."""
    pad = backbone.num_items
    sequences_BL = torch.tensor([[1, 2, 3, 4, 5, 6], [pad, pad, pad, pad, 7, 8]]).repeat(3000, 1)
    masked_BL = backbone.masked_positions(sequences_BL)
    assert not masked_BL[sequences_BL == pad].any() and masked_BL.any(1).all()
    long_BL = masked_BL[::2]
    only_last = 0.1 + 0.9 * 0.5**6 * 2
    assert abs(long_BL[:, 0].float().mean() - 0.9 * 0.5) < 0.03
    only_last_B = long_BL[:, -1] & (long_BL.sum(1) == 1)
    assert abs(only_last_B.float().mean() - only_last) < 0.03


def test_batches_hold_the_sequences(backbone: bert4rec.BERT4Rec, topk: TopKData) -> None:
    rows = [row for (batch,) in backbone.batches(topk, np.random.default_rng(0)) for row in batch.tolist()]
    items = sorted([item for item in row if item != topk.num_items] for row in rows)
    covered = {(row[-1], len(row)) for row in items}
    assert all(len(row) == 6 for row in rows)
    assert {(int(s[-1]), min(len(s), 6)) for s in topk.sequences} <= covered
    short = sorted(s.tolist() for s in topk.sequences if len(s) <= 6)
    assert [row for row in items if row in short] and all(row in items for row in short)


def test_loss_by_hand(backbone: bert4rec.BERT4Rec) -> None:
    """Eq. (8): the mean of -log softmax(GELU(h W + b) E^T + b) at the masked positions."""
    pad, mask = backbone.num_items, backbone.mask_token
    sequences_BL = torch.tensor([[pad, pad, 1, 2, 3, 4], [pad, 9, 8, 7, 6, 5]])
    torch.manual_seed(3)
    masked_BL = backbone.masked_positions(sequences_BL)
    hidden_BLD = backbone.encode(torch.where(masked_BL, mask, sequences_BL)).detach().double().numpy()
    state = {name: value.double().numpy() for name, value in backbone.state_dict().items()}
    terms = []
    for row, column in masked_BL.nonzero().tolist():
        x_D = state["projection.weight"] @ hidden_BLD[row, column] + state["projection.bias"]
        gelu_D = [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in x_D]
        scores_I = state["items.weight"][:pad] @ gelu_D + state["bias"]
        terms.append(np.log(np.exp(scores_I).sum()) - scores_I[sequences_BL[row, column]])
    torch.manual_seed(3)
    assert abs(backbone.loss((sequences_BL,)).item() - np.mean(terms)) < 1e-4


def test_every_item_sees_both_sides_but_no_padding(backbone: bert4rec.BERT4Rec) -> None:
    inputs_BL = torch.tensor([[3, 7, 1, 9, 4, 2]])
    for changed in range(6):
        other_BL = inputs_BL.clone()
        other_BL[:, changed] = 20
        difference = (backbone.encode(other_BL) - backbone.encode(inputs_BL)).abs().amax((0, 2))
        assert (difference > 1e-4).all()
    users_B, pad = torch.tensor([0]), backbone.num_items
    short = backbone.score(users_B, torch.tensor([[4, 5, 6]]))
    torch.testing.assert_close(backbone.score(users_B, torch.tensor([[pad, pad, 4, 5, 6]])), short)


def test_scoring_appends_a_mask_and_sees_the_last_items(backbone: bert4rec.BERT4Rec) -> None:
    """The hidden input is no item, so a target cannot leak; only max_length - 1 items are seen."""
    assert backbone.history_length == 5
    scores_1I = backbone.score(torch.tensor([0]), torch.tensor([[1, 2, 3, 4, 5]]))
    longer_1I = backbone.score(torch.tensor([0]), torch.tensor([[9, 8, 1, 2, 3, 4, 5]]))
    torch.testing.assert_close(longer_1I, scores_1I)
    hidden_D = backbone.encode(torch.tensor([[1, 2, 3, 4, 5, backbone.mask_token]]))[0, -1]
    want_I = backbone.project(hidden_D) @ backbone.items.weight[:40].T + backbone.bias
    torch.testing.assert_close(scores_1I[0], want_I)
