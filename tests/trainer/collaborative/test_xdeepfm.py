"""xDeepFM's prediction with the CIN in explicit loops over maps, fields and dimensions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recloom.trainer.collaborative.fields import FieldBackbone
from recloom.trainer.collaborative.xdeepfm import CompressedInteraction

USERS_N, ITEMS_N = torch.tensor([3, 17, 40]), torch.tensor([8, 39, 2])


def next_maps(weight_KHF: np.ndarray, previous_HD: np.ndarray, first_FD: np.ndarray) -> np.ndarray:
    """x_{k,d} = sum over h, f of W_{k,h,f} * previous_{h,d} * first_{f,d}."""
    maps_KD = np.zeros((len(weight_KHF), first_FD.shape[1]))
    for k, h, f in np.ndindex(weight_KHF.shape):
        for d in range(first_FD.shape[1]):
            maps_KD[k, d] += weight_KHF[k, h, f] * previous_HD[h, d] * first_FD[f, d]
    return maps_KD


def pooled_maps(cin: CompressedInteraction, first_FD: np.ndarray) -> np.ndarray:
    maps, pooled = first_FD, []
    for layer in cin.layers:
        weight_KHF = layer.weight.detach().numpy().reshape(-1, len(maps), len(first_FD))
        maps = next_maps(weight_KHF, maps, first_FD)
        pooled += [float(sum(row)) for row in maps]
    return np.array(pooled)


def test_prediction_with_explicit_maps(rating_backbone: Callable[..., FieldBackbone]) -> None:
    backbone = rating_backbone("xdeepfm", cin=(3, 2), hidden=(6, 5), embedding=3, dropout=0.5)
    state = {name: tensor.numpy() for name, tensor in backbone.state_dict().items()}
    factors_NFD = backbone.fields(backbone.factors, USERS_N, ITEMS_N).detach().numpy()
    linear_NF = backbone.fields(backbone.linear, USERS_N, ITEMS_N)[:, :, 0].detach().numpy()
    for row, got in enumerate(backbone(USERS_N, ITEMS_N).tolist()):
        pooled_M = pooled_maps(backbone.cin, factors_NFD[row])
        assert pooled_M.shape == (3 + 2,)
        deep_H = factors_NFD[row].ravel()
        for number in (0, 3):
            weight, bias = state[f"deep.{number}.weight"], state[f"deep.{number}.bias"]
            deep_H = np.maximum(weight @ deep_H + bias, 0)
        interactions = state["cin_head.weight"][0] @ pooled_M + state["deep.6.weight"][0] @ deep_H
        assert got == pytest.approx(float(state["bias"] + linear_NF[row].sum() + interactions))
