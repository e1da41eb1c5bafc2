"""DCN's prediction in plain numpy, with the outer product x_0 x_l^T written out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recloom.trainer.collaborative.dcn import CrossLayer
from recloom.trainer.collaborative.fields import FieldBackbone

USERS_N, ITEMS_N = torch.tensor([3, 17, 40]), torch.tensor([8, 39, 2])


def crossed(layer: CrossLayer, first_C: np.ndarray, previous_C: np.ndarray) -> np.ndarray:
    """x_0 x_l^T w + b + x_l, element by element of the outer product."""
    weight_C, bias_C = layer.weight.weight[0].detach().numpy(), layer.bias.detach().numpy()
    out_C = np.zeros_like(first_C)
    for i, first in enumerate(first_C):
        for j, previous in enumerate(previous_C):
            out_C[i] += first * previous * weight_C[j]
        out_C[i] += bias_C[i] + previous_C[i]
    return out_C


def test_prediction_with_the_outer_product(rating_backbone: Callable[..., FieldBackbone]) -> None:
    backbone = rating_backbone("dcn", cross_layers=3, hidden=(6, 5), embedding=3, dropout=0.5)
    state = {name: tensor.numpy() for name, tensor in backbone.state_dict().items()}
    factors_NC = backbone.fields(backbone.factors, USERS_N, ITEMS_N).flatten(1).detach().numpy()
    linear_NF = backbone.fields(backbone.linear, USERS_N, ITEMS_N)[:, :, 0].detach().numpy()
    assert factors_NC.shape == (3, 4 * 3) and len(backbone.cross) == 3
    for row, got in enumerate(backbone(USERS_N, ITEMS_N).tolist()):
        first_C = cross_C = deep_H = factors_NC[row]
        for layer in backbone.cross:
            cross_C = crossed(layer, first_C, cross_C)
        for number in (0, 3):
            weight, bias = state[f"deep.{number}.weight"], state[f"deep.{number}.bias"]
            deep_H = np.maximum(weight @ deep_H + bias, 0)
        head = state["head.weight"][0]
        assert head.shape == (12 + 5,)
        want = state["bias"] + linear_NF[row].sum() + head[:12] @ cross_C + head[12:] @ deep_H
        assert got == pytest.approx(float(want))
