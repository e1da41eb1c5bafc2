"""NextItNet: the convolutions by loops, causality, reach, padding, the loss written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recloom.trainer.collaborative import nextitnet
from recloom.trainer.collaborative.data import TopKData

SMALL = nextitnet.Settings(embedding=8, max_length=6, dilations=(1, 2))
PAD = 40


def made(topk: TopKData, settings: nextitnet.Settings) -> nextitnet.NextItNet:
    torch.manual_seed(0)
    model = nextitnet.NextItNet.build(topk, settings).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def backbone(topk: TopKData) -> nextitnet.NextItNet:
    return made(topk, SMALL)


def layer_norm(row_D: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    scaled_D = (row_D - row_D.mean()) / np.sqrt(row_D.var() + 1e-5)
    return scaled_D * state[f"{name}.weight"] + state[f"{name}.bias"]


def encoded_by_loops(backbone: nextitnet.NextItNet, items: list[int]) -> np.ndarray:
    """The hidden states of a history without padding: sums over the items that lie d, 2d, ... before."""
    state = {name: value.double().numpy() for name, value in backbone.state_dict().items()}
    hidden_LD = state["items.weight"][items] * np.sqrt(8)
    for block, dilation in enumerate(backbone.settings.dilations):
        inner_LD = hidden_LD
        for part, step in enumerate((dilation, 2 * dilation)):
            name = f"blocks.{block}.convolutions.{part}"
            rows = []
            for place in range(len(items)):
                sums_D = state[f"{name}.bias"].copy()
                for tap in range(3):
                    if (before := place - (2 - tap) * step) >= 0:
                        sums_D += state[f"{name}.weight"][:, :, tap] @ inner_LD[before]
                rows.append(np.maximum(layer_norm(sums_D, state, f"blocks.{block}.norms.{part}"), 0))
            inner_LD = np.stack(rows)
        hidden_LD = hidden_LD + inner_LD
    return hidden_LD


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_hidden_states_by_loops(backbone: nextitnet.NextItNet, padding: int) -> None:
    """Padding on the left is as if the convolutions began at the first item."""
    items = [3, 7, 1, 9, 4, 2][padding:]
    hidden_LD = backbone.encode(torch.tensor([[PAD] * padding + items]))[0, padding:]
    np.testing.assert_allclose(hidden_LD.tolist(), encoded_by_loops(backbone, items), atol=1e-4)


def test_a_later_item_changes_no_earlier_output(backbone: nextitnet.NextItNet) -> None:
    inputs_BL = torch.tensor([[40, 40, 3, 7, 1, 9], [5, 6, 7, 8, 9, 10]])
    before = backbone.encode(inputs_BL)
    for changed in range(2, 6):
        other_BL = inputs_BL.clone()
        other_BL[:, changed] = 20
        after = backbone.encode(other_BL)
        torch.testing.assert_close(after[:, :changed], before[:, :changed])
        assert (after[:, changed] - before[:, changed]).abs().amax(1).min() > 1e-4


def test_the_default_reach(topk: TopKData) -> None:
    """61 items: 1 + 2 (1 + 2) + 2 (4 + 8), twice the blocks' part; an item before them changes nothing."""
    backbone = made(topk, nextitnet.Settings(embedding=8, max_length=80))
    inputs_1L = torch.arange(80)[None] % 40
    last_D = backbone.encode(inputs_1L)[0, -1]
    for place, reached in ((18, False), (19, True)):
        other_1L = inputs_1L.clone()
        other_1L[0, place] = 35
        assert torch.equal(backbone.encode(other_1L)[0, -1], last_D) != reached
    assert nextitnet.Settings().max_length <= 61


def test_padding_and_cut_change_nothing(backbone: nextitnet.NextItNet) -> None:
    """The same history in any padded width, and with older items than the model sees."""
    users_B = torch.tensor([0])
    short = backbone.score(users_B, torch.tensor([[4, 5, 6]]))
    torch.testing.assert_close(backbone.score(users_B, torch.tensor([[PAD, 4, 5, 6]])), short)
    torch.testing.assert_close(backbone.score(users_B, torch.tensor([[PAD] * 9 + [4, 5, 6]])), short)
    full = backbone.score(users_B, torch.tensor([[1, 2, 3, 4, 5, 6]]))
    torch.testing.assert_close(backbone.score(users_B, torch.tensor([[9, 8, 1, 2, 3, 4, 5, 6]])), full)


def test_an_empty_history_has_finite_scores(backbone: nextitnet.NextItNet) -> None:
    assert torch.isfinite(backbone.score(torch.tensor([0]), torch.full((1, 6), PAD))).all()


def test_loss_and_scores(backbone: nextitnet.NextItNet) -> None:
    """The mean cross-entropy over the real positions of each history's states, computed alone."""
    inputs_BL = torch.tensor([[PAD, PAD, PAD, 1, 2, 3], [PAD, PAD, PAD, PAD, PAD, 7]])
    targets_BL = torch.tensor([[PAD, PAD, PAD, 2, 3, 4], [PAD, PAD, PAD, PAD, PAD, 8]])
    states = [encoded_by_loops(backbone, items) for items in ([1, 2, 3], [7])]
    items_ID = backbone.items.weight[:PAD].detach().double()
    logits_MI = torch.from_numpy(np.concatenate(states)) @ items_ID.T
    want = F.cross_entropy(logits_MI, torch.tensor([2, 3, 4, 8]))
    assert abs(backbone.loss((inputs_BL, targets_BL)).item() - want.item()) < 1e-4
    scores_BI = backbone.score(torch.tensor([0, 1]), inputs_BL)
    np.testing.assert_allclose(scores_BI.tolist(), logits_MI[[2, 3]], atol=1e-4)
