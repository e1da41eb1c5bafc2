"""DeepFM against explicit loops over fields, and its bags, ids and range."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recloom.trainer.collaborative import deepfm
from recloom.trainer.collaborative.data import RatingData
from recloom.trainer.collaborative.features import FeatureTable


@pytest.fixture
def backbone(rating: RatingData) -> deepfm.DeepFM:
    torch.manual_seed(0)
    model = deepfm.DeepFM.build(rating, deepfm.Settings(hidden=(8, 4))).eval()
    for name, parameter in model.named_parameters():
        if name != "bias":
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_second_order_is_the_sum_over_pairs() -> None:
    torch.manual_seed(0)
    factors_NFD = torch.randn(3, 5, 4, dtype=torch.float64)
    for row, factors_FD in enumerate(factors_NFD):
        want = 0.0
        for f in range(5):
            for g in range(f + 1, 5):
                want += float(factors_FD[f] @ factors_FD[g])
        assert abs(deepfm.second_order(factors_NFD)[row].item() - want) < 1e-12


def side_fields(table: torch.Tensor, first: int, features: FeatureTable, row: int) -> list[torch.Tensor]:
    """The id's vector and each attribute's averaged bag, from the numbering that `Side` documents."""
    found = [table[first + row]]
    for field in range(len(features.fields)):
        bag = [
            int(i) for i, f in zip(features.index_ES[row], features.field_S, strict=True) if f == field and i
        ]
        start = first + len(features.index_ES) - 1
        found.append(torch.stack([table[start + index] for index in bag]).mean(0))
    return found


def test_prediction_by_explicit_loops(backbone: deepfm.DeepFM, rating: RatingData) -> None:
    users_N, items_N = torch.tensor([3, 17]), torch.tensor([8, 39])
    got_N = backbone(users_N, items_N)
    first_item = rating.num_users + rating.user_features.num_values
    for row in range(2):
        vectors = {}
        for name in ("linear", "factors"):
            table = getattr(backbone, name).weight
            vectors[name] = side_fields(table, 1, rating.user_features, int(users_N[row]))
            vectors[name] += side_fields(table, first_item, rating.item_features, int(items_N[row]))
        factors = vectors["factors"]
        assert len(factors) == 4
        want = backbone.bias + torch.stack(vectors["linear"]).sum() + backbone.deep(torch.cat(factors))[0]
        for f in range(4):
            for g in range(f + 1, 4):
                want = want + factors[f] @ factors[g]
        torch.testing.assert_close(got_N[row], want)


def test_every_value_has_its_own_number(backbone: deepfm.DeepFM) -> None:
    indices = [
        set(side.index_ES.unique().tolist()) - {0} for side in (backbone.user_side, backbone.item_side)
    ]
    assert not indices[0] & indices[1]
    assert indices[0] | indices[1] == set(range(1, backbone.sizes["num_values"]))


def test_ratings_stay_in_range_and_scores_are_ratings(backbone: deepfm.DeepFM) -> None:
    users_B = torch.tensor([0, 5])
    with torch.no_grad():
        backbone.linear.weight[1 + 5] = 100.0
        scores_BI = backbone.score(users_B, torch.zeros(2, 0, dtype=torch.long))
        for row, user in enumerate((0, 5)):
            pairs = torch.full((backbone.num_items,), user), torch.arange(backbone.num_items)
            torch.testing.assert_close(scores_BI[row], backbone.predict_rating(*pairs))
    assert (scores_BI[1] == 5).all() and scores_BI[0].max() <= 5 and scores_BI[0].min() >= 1


def test_starts_at_the_mean_rating_and_works_without_attributes(rating: RatingData) -> None:
    index_ES, weight_ES = np.zeros((60, 0), np.int64), np.zeros((60, 0), np.float32)
    none = FeatureTable((), index_ES, weight_ES, np.zeros(0, np.int64), (("", ""),))
    bare = replace(rating, user_features=none)
    backbone = deepfm.DeepFM.build(bare, deepfm.Settings())
    assert backbone.bias.item() == pytest.approx(float(rating.train.rating_N.mean()))
    assert backbone(torch.tensor([0, 59]), torch.tensor([0, 39])).shape == (2,)
