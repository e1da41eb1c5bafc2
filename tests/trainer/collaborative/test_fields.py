"""What every rating backbone on field embeddings must do, whatever it makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recloom.trainer.collaborative import registry
from recloom.trainer.collaborative.fields import FieldBackbone, bi_interaction, hidden_layers

Build = Callable[..., FieldBackbone]
NAMES = registry.backbone_names("rating")
USERS_N, ITEMS_N = torch.tensor([3, 17, 59, 3]), torch.tensor([8, 39, 0, 20])


def test_bi_interaction_is_the_sum_over_pairs() -> None:
    torch.manual_seed(0)
    factors_NFD = torch.randn(3, 5, 4, dtype=torch.float64)
    want_ND = torch.zeros(3, 4, dtype=torch.float64)
    for f in range(5):
        for g in range(f + 1, 5):
            want_ND += factors_NFD[:, f] * factors_NFD[:, g]
    torch.testing.assert_close(bi_interaction(factors_NFD), want_ND)


def test_hidden_layers_may_be_none() -> None:
    assert hidden_layers([7], 0.1) == []
    assert [type(layer).__name__ for layer in hidden_layers([7, 3], 0.1)] == ["Linear", "ReLU", "Dropout"]


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_mean_squared_error_of_the_unbounded_prediction(
    rating_backbone: Build, name: str
) -> None:
    backbone = rating_backbone(name)
    ratings_N = torch.tensor([1.0, 5.0, 3.0, 2.0], dtype=torch.float64)
    predicted_N = backbone(USERS_N, ITEMS_N)
    assert predicted_N.shape == (4,) and predicted_N.std() > 0
    want = sum((p - r) ** 2 for p, r in zip(predicted_N.tolist(), ratings_N.tolist(), strict=True)) / 4
    assert backbone.loss((USERS_N, ITEMS_N, ratings_N)).item() == pytest.approx(want)
    bounded_N = [min(5.0, max(1.0, p)) for p in predicted_N.tolist()]
    assert backbone.predict_rating(USERS_N, ITEMS_N).tolist() == pytest.approx(bounded_N)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(rating_backbone: Build, name: str) -> None:
    """All pairs in one batch: every embedding but the unused slot's must get a gradient, too."""
    backbone = rating_backbone(name)
    users_N, items_N = torch.arange(60).repeat_interleave(40), torch.arange(40).repeat(60)
    backbone.loss((users_N, items_N, torch.full((2400,), 3.0, dtype=torch.float64))).backward()
    for path, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), path
        assert parameter.grad.any(), path
    for table in (backbone.linear, backbone.factors):
        assert table.weight.grad is not None
        assert table.weight.grad.any(1).tolist() == [False] + [True] * (backbone.sizes["num_values"] - 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_backbone_is_equal_in_a_new_object(rating_backbone: Build, tmp_path: Path, name: str) -> None:
    backbone = rating_backbone(name, embedding=3).float()
    registry.save_backbone(backbone, backbone.settings, tmp_path)
    loaded = registry.load_backbone(tmp_path)
    assert loaded is not backbone and type(loaded) is type(backbone)
    assert torch.equal(loaded.predict_rating(USERS_N, ITEMS_N), backbone.predict_rating(USERS_N, ITEMS_N))
    none_BL = torch.zeros(4, 0, dtype=torch.long)
    vectors = backbone.user_vectors(USERS_N, none_BL), backbone.item_vectors()
    assert [tuple(v.shape) for v in vectors] == [(4, 2 * 3), (40, 2 * 3)]
    assert torch.equal(loaded.user_vectors(USERS_N, none_BL), vectors[0])
    assert torch.equal(loaded.item_vectors(), vectors[1])
