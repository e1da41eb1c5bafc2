"""CL4SRec: the three augmentations, the contrast against loops, and scoring like SASRec."""

from __future__ import annotations

import math

import pytest
import torch

from recloom.trainer.collaborative import cl4srec, sasrec
from recloom.trainer.collaborative.data import TopKData

PAD, MASK = 40, 41


@pytest.fixture
def backbone(topk: TopKData) -> cl4srec.CL4SRec:
    torch.manual_seed(0)
    model = cl4srec.CL4SRec.build(topk, cl4srec.Settings(embedding=8, max_length=8, contrast_weight=0.3))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def rows() -> list[list[int]]:
    """Histories of 1 to 8 items, many times, padded on the left."""
    return [[PAD] * (8 - n) + list(range(10, 10 + n)) for n in range(1, 9)] * 50


def items(row: list[int]) -> list[int]:
    return [item for item in row if item != PAD]


def test_crop_keeps_a_run(backbone: cl4srec.CL4SRec) -> None:
    starts = set()
    for before, after in zip(rows(), backbone.crop(torch.tensor(rows())).tolist(), strict=True):
        past, kept = items(before), items(after)
        assert len(kept) == max(1, len(past) // 2) and after == [PAD] * (8 - len(kept)) + kept
        assert kept == list(range(kept[0], kept[0] + len(kept))) and set(kept) <= set(past)
        starts |= {kept[0]} if len(past) == 8 else set()
    assert starts == {10, 11, 12, 13, 14}


def test_mask_hides_half(backbone: cl4srec.CL4SRec) -> None:
    hidden = set()
    for before, after in zip(rows(), backbone.hide(torch.tensor(rows())).tolist(), strict=True):
        changed = [place for place in range(8) if before[place] != after[place]]
        assert len(changed) == len(items(before)) // 2
        assert all(after[place] == MASK and before[place] != PAD for place in changed)
        hidden |= set(changed)
    assert hidden == set(range(8))


def test_reorder_shuffles_a_run(backbone: cl4srec.CL4SRec) -> None:
    moved = set()
    for before, after in zip(rows(), backbone.reorder(torch.tensor(rows())).tolist(), strict=True):
        changed = [place for place in range(8) if before[place] != after[place]]
        assert sorted(after) == sorted(before) and before.count(PAD) == after[: before.count(PAD)].count(PAD)
        assert not changed or changed[-1] - changed[0] < max(1, len(items(before)) // 2)
        moved |= set(changed)
    assert moved == set(range(8))


def test_loss_by_loops(backbone: cl4srec.CL4SRec, topk: TopKData) -> None:
    """Xie et al. 2022, eqs. (2) and (12): the other view against the views of other sequences."""
    inputs_BL, targets_BL = torch.tensor(rows()[2:6]), torch.tensor([row[1:] + [9] for row in rows()[2:6]])
    torch.manual_seed(5)
    views = [backbone.augment(inputs_BL) for _ in range(2)]
    assert not torch.equal(*views)
    vectors = torch.cat([backbone.encode(view)[:, -1] for view in views]).tolist()
    dot = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in vectors] for x in vectors]
    contrast = 0.0
    for view in range(8):
        others = sum(math.exp(dot[view][other]) for other in range(8) if other != view)
        contrast -= math.log(math.exp(dot[view][(view + 4) % 8]) / others) / 8
    plain = sasrec.SASRec.build(topk, sasrec.Settings(embedding=8, max_length=8)).eval()
    state = backbone.state_dict()
    plain.load_state_dict({**state, "items.weight": state["items.weight"][:-1]})
    torch.manual_seed(5)
    want = plain.loss((inputs_BL, targets_BL)).item() + 0.3 * contrast
    assert abs(backbone.loss((inputs_BL, targets_BL)).item() - want) < 1e-4
    # scoring sees the history as it is, and no mask token is ranked
    scores_BI = backbone.score(torch.arange(4), inputs_BL)
    torch.testing.assert_close(scores_BI, plain.score(torch.arange(4), inputs_BL))
    assert scores_BI.shape == (4, 40)
