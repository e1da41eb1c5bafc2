"""GRU4Rec: the recurrence step by step, causality, padding, the loss written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recloom.trainer.collaborative import gru4rec
from recloom.trainer.collaborative.data import TopKData

SMALL = gru4rec.Settings(embedding=8, max_length=6, layers=2)
PAD = 40


@pytest.fixture
def backbone(topk: TopKData) -> gru4rec.GRU4Rec:
    torch.manual_seed(0)
    model = gru4rec.GRU4Rec.build(topk, SMALL).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def sigmoid(x_D: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x_D))


def states_by_loops(backbone: gru4rec.GRU4Rec, items: list[int]) -> np.ndarray:
    """Hidasi et al. 2016, eqs. (2) to (5), the reset gate after the product with the last state."""
    weights = {name: value.double().numpy() for name, value in backbone.state_dict().items()}
    inputs = [weights["items.weight"][item] * np.sqrt(8) for item in items]
    for layer in range(2):
        parts = [weights[f"gru.{kind}_l{layer}"] for kind in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
        state_D, states = np.zeros(8), []
        for input_D in inputs:
            reset_D, update_D, new_D = np.split(parts[0] @ input_D + parts[1], 3)
            own_reset_D, own_update_D, own_new_D = np.split(parts[2] @ state_D + parts[3], 3)
            update_D = sigmoid(update_D + own_update_D)
            candidate_D = np.tanh(new_D + sigmoid(reset_D + own_reset_D) * own_new_D)
            state_D = (1 - update_D) * candidate_D + update_D * state_D
            states.append(state_D)
        inputs = states
    return np.stack(inputs)


@pytest.mark.parametrize("padding", [0, 1, 5])
def test_states_by_loops(backbone: gru4rec.GRU4Rec, padding: int) -> None:
    """Behind padding the recurrence starts at the first item, from 0; other rows have other padding."""
    items = [3, 7, 1, 9, 4, 2]
    inputs_BL = torch.tensor([items, [PAD] * padding + items[padding:]])
    states_BLD = backbone.encode(inputs_BL).detach()
    np.testing.assert_allclose(states_BLD[0], states_by_loops(backbone, items), atol=1e-5)
    want_LD = states_by_loops(backbone, items[padding:])
    np.testing.assert_allclose(states_BLD[1, padding:], want_LD, atol=1e-5)


def test_turned_there_and_back() -> None:
    rows_BL = torch.tensor([[9, 9, 1, 2], [9, 5, 6, 7], [1, 2, 3, 4]])
    places_B1 = torch.tensor([[2], [1], [0]])
    left_BL = gru4rec.turned(rows_BL, places_B1)
    assert left_BL.tolist() == [[1, 2, 9, 9], [5, 6, 7, 9], [1, 2, 3, 4]]
    assert torch.equal(gru4rec.turned(left_BL, -places_B1), rows_BL)


def test_a_later_item_changes_no_earlier_output(backbone: gru4rec.GRU4Rec) -> None:
    inputs_BL = torch.tensor([[40, 40, 3, 7, 1, 9], [5, 6, 7, 8, 9, 10]])
    before = backbone.encode(inputs_BL)
    for changed in range(2, 6):
        other_BL = inputs_BL.clone()
        other_BL[:, changed] = 20
        after = backbone.encode(other_BL)
        torch.testing.assert_close(after[:, 2:changed], before[:, 2:changed])
        assert (after[:, changed:] - before[:, changed:]).abs().amax((0, 2)).min() > 1e-4


def test_padding_and_cut_change_nothing(backbone: gru4rec.GRU4Rec) -> None:
    """The same history in any padded width, and with older items than the model sees."""
    users_B = torch.tensor([0])
    short = backbone.score(users_B, torch.tensor([[4, 5, 6]]))
    torch.testing.assert_close(backbone.score(users_B, torch.tensor([[PAD, 4, 5, 6]])), short)
    torch.testing.assert_close(backbone.score(users_B, torch.tensor([[PAD] * 9 + [4, 5, 6]])), short)
    full = backbone.score(users_B, torch.tensor([[1, 2, 3, 4, 5, 6]]))
    torch.testing.assert_close(backbone.score(users_B, torch.tensor([[9, 8, 1, 2, 3, 4, 5, 6]])), full)


def test_an_empty_history_has_finite_scores(backbone: gru4rec.GRU4Rec) -> None:
    assert torch.isfinite(backbone.score(torch.tensor([0]), torch.full((1, 6), PAD))).all()


def test_loss_and_scores(backbone: gru4rec.GRU4Rec) -> None:
    """The mean cross-entropy over the real positions of each history's states, computed alone."""
    inputs_BL = torch.tensor([[PAD, PAD, PAD, 1, 2, 3], [PAD, PAD, PAD, PAD, PAD, 7]])
    targets_BL = torch.tensor([[PAD, PAD, PAD, 2, 3, 4], [PAD, PAD, PAD, PAD, PAD, 8]])
    states_MD = np.concatenate([states_by_loops(backbone, items) for items in ([1, 2, 3], [7])])
    logits_MI = torch.from_numpy(states_MD) @ backbone.items.weight[:PAD].detach().double().T
    want = F.cross_entropy(logits_MI, torch.tensor([2, 3, 4, 8]))
    assert abs(backbone.loss((inputs_BL, targets_BL)).item() - want.item()) < 1e-4
    scores_BI = backbone.score(torch.tensor([0, 1]), inputs_BL)
    np.testing.assert_allclose(scores_BI.tolist(), logits_MI[[2, 3]], atol=1e-4)
