"""SGL's views, its contrast against loops, and the sum of its losses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from recloom.trainer.collaborative import lightgcn, sgl
from recloom.trainer.collaborative.data import TopKData


def build(topk: TopKData, **fields: object) -> sgl.SGL:
    torch.manual_seed(0)
    model = sgl.SGL.build(topk, sgl.Settings(**{"embedding": 6, "drop": 0.3, **fields}))
    torch.nn.init.normal_(model.nodes.weight)
    return model


def edges(adjacency: torch.Tensor) -> set[tuple[int, int]]:
    return {(row, column) for row, column in adjacency.to_dense().nonzero().tolist()}


@pytest.mark.parametrize("operator", ["ED", "ND", "RW"])
def test_views_drop_what_the_operator_says(topk: TopKData, operator: str) -> None:
    """Wu et al. 2021, eqs. (5) to (7): a view's edges, their share, and its own degrees."""
    backbone = build(topk, operator=operator)
    whole = edges(backbone.adjacency())
    shares, node_lost = [], []
    for seed in range(20):
        first, second = backbone.view(np.random.default_rng(seed))
        assert (edges(first) == edges(second)) == (operator != "RW")
        for view in (first, second):
            assert edges(view) <= whole
            shares.append(len(edges(view)) / len(whole))
        dense = first.to_dense()
        degree = (dense > 0).sum(1)
        for row, column in list(edges(first))[:9]:
            assert abs(dense[row, column].item() - (degree[row] * degree[column]).item() ** -0.5) < 1e-6
        node_lost.append((degree == 0).float().mean().item())
    assert abs(np.mean(shares) - (0.49 if operator == "ND" else 0.7)) < 0.05
    assert (np.mean(node_lost) > 0.25) == (operator == "ND")


def test_two_views_an_epoch(topk: TopKData) -> None:
    backbone = build(topk, batch_size=64)
    rng = np.random.default_rng(0)
    epochs = [list(backbone.batches(topk, rng)) for _ in range(2)]
    assert len(epochs[0]) > 1 and all(batch[3] is epochs[0][0][3] for batch in epochs[0])
    drawn = [edges(view) for epoch in epochs for view in (epoch[0][3], epoch[0][5])]
    assert all(drawn[i] != drawn[j] for i in range(4) for j in range(i))


def test_loss_by_loops(topk: TopKData) -> None:
    """Eq. (13) with the contrast of eq. (10) written out, extra pairs of Llama4Rec's eq. (3) included."""
    backbone = build(topk, contrast_weight=0.4, temperature=0.5, batch_size=9, weight_decay=0.2)
    data = replace(topk, extra_pairs=np.array([[0, 39, 38], [3, 1, 2]] * 200))
    batch = next(backbone.batches(data, np.random.default_rng(0)))
    plain = lightgcn.LightGCN.build(topk, lightgcn.Settings(embedding=6, weight_decay=0.2))
    plain.load_state_dict(backbone.state_dict())
    views = []
    for start in (3, 5):
        first, second = (adjacency.to_dense() for adjacency in batch[start : start + 2])
        ego_VD = backbone.nodes.weight.detach()
        views.append(((ego_VD + first @ ego_VD + second @ first @ ego_VD) / 3).tolist())
    contrast = 0.0
    for nodes in ({int(u) for u in batch[0]}, {int(i) + topk.num_users for i in batch[1]}):
        for node in nodes:
            terms = {m: math.exp(cosine(views[0][node], views[1][m]) / 0.5) for m in nodes}
            contrast -= math.log(terms[node] / sum(terms.values())) / len(nodes)
    want = plain.loss(batch[:3]).item() + 0.4 * contrast
    assert abs(backbone.loss(batch).item() - want) < 1e-4


def cosine(first: list[float], second: list[float]) -> float:
    product = sum(a * b for a, b in zip(first, second, strict=True))
    return product / math.hypot(*first) / math.hypot(*second)


def test_scores_use_the_whole_graph(topk: TopKData) -> None:
    backbone = build(topk)
    next(backbone.batches(topk, np.random.default_rng(0)))
    plain = lightgcn.LightGCN.build(topk, lightgcn.Settings(embedding=6))
    plain.load_state_dict(backbone.state_dict())
    users_B, histories_BL = torch.arange(9), torch.zeros(9, 0, dtype=torch.long)
    assert torch.equal(backbone.score(users_B, histories_BL), plain.score(users_B, histories_BL))
