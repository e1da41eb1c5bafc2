"""MixGCF's loss and choice of negatives against loops; extra pairs; scores."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from recloom.trainer.collaborative import lightgcn, mixgcf
from recloom.trainer.collaborative.data import TopKData

SMALL = mixgcf.Settings(embedding=6, layers=2, candidates=5, weight_decay=0.3, batch_size=64)


@pytest.fixture
def backbone(topk: TopKData) -> mixgcf.MixGCF:
    torch.manual_seed(0)
    model = mixgcf.MixGCF.build(topk, SMALL)
    torch.nn.init.normal_(model.nodes.weight)
    return model


@pytest.mark.parametrize("chunk", [1, 10**6])
def test_loss_by_loops(
    backbone: mixgcf.MixGCF, topk: TopKData, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Huang et al. 2021, eqs. (6) to (9), every candidate mixed before the choice."""
    monkeypatch.setattr(mixgcf, "SCORES_PER_CHUNK", chunk)
    data = replace(topk, extra_pairs=np.array([[3, 1, 2]] * 40))
    batch = next(backbone.batches(data, np.random.default_rng(0)))
    assert 0 < batch[3].sum() < len(batch[3])
    torch.manual_seed(1)
    loss = backbone.loss(batch).item()
    torch.manual_seed(1)
    shares = torch.rand(3, len(batch[0]), 1)[:, :, 0].tolist()
    adjacency = backbone.adjacency().to_dense()
    layers = [(torch.linalg.matrix_power(adjacency, k) @ backbone.nodes.weight).detach() for k in range(3)]
    bpr, penalty = 0.0, 0.0
    for row, (user, positive, candidates, mixed) in enumerate(zip(*batch, strict=True)):
        user_D = sum(layer[user] for layer in layers) / 3
        difference_D = torch.zeros(6)
        for k, layer in enumerate(layers):
            share = shares[k][row] * bool(mixed)
            positive_D = layer[topk.num_users + positive]
            options = [share * positive_D + (1 - share) * layer[topk.num_users + c] for c in candidates]
            hardest = max(range(5), key=lambda m: float(user_D @ options[m]))
            difference_D += (positive_D - options[hardest]) / 3
            if k == 0:
                nodes = (user, topk.num_users + positive, topk.num_users + candidates[hardest])
                penalty += sum(float(layer[node] @ layer[node]) for node in nodes) / 2
        bpr += math.log1p(math.exp(-float(user_D @ difference_D)))
    assert abs(loss - (bpr + 0.3 * penalty) / len(batch[0])) < 1e-4


def test_candidates_are_unseen_and_extra_pairs_keep_their_own(
    backbone: mixgcf.MixGCF, topk: TopKData
) -> None:
    extra = np.array([[0, 39, 38], [3, 1, 2]])
    batches = list(backbone.batches(replace(topk, extra_pairs=extra), np.random.default_rng(0)))
    users_N, positives_N, candidates_NM, mixed_N = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert len(users_N) == sum(map(len, topk.sequences)) + 2
    for user, candidates_M in zip(users_N[mixed_N].tolist(), candidates_NM[mixed_N], strict=True):
        assert not set(candidates_M.tolist()) & set(topk.sequences[user].tolist())
    assert candidates_NM[mixed_N].unique(dim=1).shape[1] == 5
    kept = torch.stack([users_N, positives_N, candidates_NM[:, 0]], dim=1)[~mixed_N]
    assert sorted(kept.tolist()) == extra.tolist()
    assert (candidates_NM[~mixed_N] == candidates_NM[~mixed_N][:, :1]).all()


def test_scores_are_lightgcns(backbone: mixgcf.MixGCF, topk: TopKData) -> None:
    other = lightgcn.LightGCN.build(topk, lightgcn.Settings(embedding=6, layers=2))
    other.load_state_dict(backbone.state_dict())
    users_B, histories_BL = torch.arange(9), torch.zeros(9, 0, dtype=torch.long)
    assert torch.equal(backbone.score(users_B, histories_BL), other.score(users_B, histories_BL))
