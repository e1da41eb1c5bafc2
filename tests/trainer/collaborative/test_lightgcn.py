"""LightGCN's propagation and its gradient against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from recloom.trainer.collaborative import lightgcn
from recloom.trainer.collaborative.data import TopKData


def dense_final(data: TopKData, ego_VD: Tensor, layers: int) -> Tensor:
    """He et al. 2020, eqs. (6)-(8): sum over k of A_hat^k E / (K + 1), all dense."""
    ratings_UI = torch.zeros(data.num_users, data.num_items, dtype=ego_VD.dtype)
    for user, items in enumerate(data.sequences):
        for item in items.tolist():
            ratings_UI[user, item] = 1
    num_users = data.num_users
    adjacency = torch.zeros(len(ego_VD), len(ego_VD), dtype=ego_VD.dtype)
    adjacency[:num_users, num_users:] = ratings_UI
    adjacency[num_users:, :num_users] = ratings_UI.T
    inverse_root = torch.diag(adjacency.sum(1).clamp(min=1) ** -0.5)
    normalised = inverse_root @ adjacency @ inverse_root
    powers = [torch.linalg.matrix_power(normalised, k) @ ego_VD for k in range(layers + 1)]
    return torch.stack(powers).mean(0)


@pytest.fixture
def data() -> TopKData:
    """A repeated item (one edge), a user without items, an item without users."""
    sequences = [np.array(items, dtype=np.int32) for items in ([0, 2, 2], [], [1, 2, 3], [0])]
    return TopKData(4, 5, sequences, np.array([1, 0, 0, -1]), sequences)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_equals_the_dense_formula(data: TopKData, layers: int) -> None:
    torch.manual_seed(0)
    backbone = lightgcn.LightGCN.build(data, lightgcn.Settings(layers=layers, embedding=6)).double()
    users_UD, items_ID = backbone.all_vectors()
    want_VD = dense_final(data, backbone.nodes.weight, layers)
    torch.testing.assert_close(torch.cat([users_UD, items_ID]), want_VD)
    scores_BI = backbone.score(torch.tensor([2, 0]), torch.zeros(2, 0, dtype=torch.long))
    torch.testing.assert_close(scores_BI, want_VD[[2, 0]] @ want_VD[4:].T)


def test_gradient_equals_the_dense_one(data: TopKData) -> None:
    torch.manual_seed(0)
    backbone = lightgcn.LightGCN.build(data, lightgcn.Settings(embedding=6)).double()
    weight_VD = torch.randn(9, 6, dtype=torch.float64)
    (torch.cat(backbone.all_vectors()) * weight_VD).sum().backward()
    ego_VD = backbone.nodes.weight.detach().clone().requires_grad_()
    (dense_final(data, ego_VD, 2) * weight_VD).sum().backward()
    torch.testing.assert_close(backbone.nodes.weight.grad, ego_VD.grad)
