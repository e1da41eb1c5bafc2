"""AFM's prediction in plain numpy, pair of fields by pair."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recloom.trainer.collaborative.afm import pair_products
from recloom.trainer.collaborative.fields import FieldBackbone, bi_interaction

USERS_N, ITEMS_N = torch.tensor([3, 17, 40]), torch.tensor([8, 39, 2])


def test_all_pairs_once() -> None:
    factors_NFD = torch.tensor([[[2.0], [3.0], [5.0], [7.0]]])
    assert sorted(pair_products(factors_NFD).flatten().tolist()) == [6, 10, 14, 15, 21, 35]


def test_prediction_pair_by_pair(rating_backbone: Callable[..., FieldBackbone]) -> None:
    backbone = rating_backbone("afm", attention=5, embedding=3, dropout=0.5)
    state = {name: tensor.numpy() for name, tensor in backbone.state_dict().items()}
    weight_AD, bias_A = state["attention.0.weight"], state["attention.0.bias"]
    vector_A, projection_D = state["attention.2.weight"][0], state["projection.weight"][0]
    assert weight_AD.shape == (5, 3) and "attention.2.bias" not in state and "projection.bias" not in state
    factors_NFD = backbone.fields(backbone.factors, USERS_N, ITEMS_N).detach().numpy()
    linear_NF = backbone.fields(backbone.linear, USERS_N, ITEMS_N)[:, :, 0].detach().numpy()
    for row, got in enumerate(backbone(USERS_N, ITEMS_N).tolist()):
        products, weights = [], []
        for f in range(4):
            for g in range(f + 1, 4):
                product_D = factors_NFD[row, f] * factors_NFD[row, g]
                products.append(product_D)
                weights.append(np.exp(vector_A @ np.maximum(weight_AD @ product_D + bias_A, 0)))
        terms = [w / sum(weights) * (projection_D @ p) for w, p in zip(weights, products, strict=True)]
        assert got == pytest.approx(float(state["bias"] + linear_NF[row].sum() + sum(terms)))


def test_even_attention_gives_nfms_pooling(rating_backbone: Callable[..., FieldBackbone]) -> None:
    """With a constant attention network every pair weighs 1 / P."""
    backbone = rating_backbone("afm", embedding=3)
    torch.nn.init.zeros_(backbone.attention[2].weight)
    pooled_ND = bi_interaction(backbone.fields(backbone.factors, USERS_N, ITEMS_N)) / 6
    want_N = backbone.first_order(USERS_N, ITEMS_N) + backbone.projection(pooled_ND)[:, 0]
    torch.testing.assert_close(backbone(USERS_N, ITEMS_N), want_N)
