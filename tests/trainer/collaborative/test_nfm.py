"""NFM's prediction in plain Python: pairs of fields added up, then the hidden layers unit by unit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from recloom.trainer.collaborative.fields import FieldBackbone

USERS_N, ITEMS_N = torch.tensor([3, 17, 40]), torch.tensor([8, 39, 2])


def dense(layer: nn.Linear, inputs: list[float]) -> list[float]:
    """W x + b, one unit after the other."""
    biases = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
    rows = zip(layer.weight.tolist(), biases, strict=True)
    return [sum(w * x for w, x in zip(row, inputs, strict=True)) + bias for row, bias in rows]


def test_prediction_unit_by_unit(rating_backbone: Callable[..., FieldBackbone]) -> None:
    backbone = rating_backbone("nfm", hidden=(6, 5), embedding=3, dropout=0.5)
    layers = [layer for layer in backbone.deep if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [6, 5, 1]
    factors_NFD = backbone.fields(backbone.factors, USERS_N, ITEMS_N)
    linear_NFD = backbone.fields(backbone.linear, USERS_N, ITEMS_N)
    for row, got in enumerate(backbone(USERS_N, ITEMS_N).tolist()):
        factors = factors_NFD[row].tolist()
        assert len(factors) == 4
        pairs = [(f, g) for f in range(4) for g in range(f)]
        values = [sum(factors[f][d] * factors[g][d] for f, g in pairs) for d in range(3)]
        for layer in layers[:-1]:
            values = [max(0.0, value) for value in dense(layer, values)]
        first = sum(weight for (weight,) in linear_NFD[row].tolist())
        assert got == pytest.approx(backbone.bias.item() + first + dense(layers[-1], values)[0])


def test_dropout_falls_on_the_pooled_vector_and_the_hidden_layers(
    rating_backbone: Callable[..., FieldBackbone],
) -> None:
    backbone = rating_backbone("nfm", hidden=(6,), dropout=0.4)
    kinds = [type(layer).__name__ for layer in backbone.deep]
    assert kinds == ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert {layer.p for layer in backbone.deep if isinstance(layer, nn.Dropout)} == {0.4}
