"""NCF: scores, chunks and the loss against the formulas written out pair by pair; negatives; vectors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from recloom.trainer.collaborative import ncf
from recloom.trainer.collaborative.data import TopKData

SMALL = ncf.Settings(embedding=4, hidden=(6, 7, 3), negatives=3, weight_decay=0.3, batch_size=64)
NO_HISTORY = torch.zeros(60, 0, dtype=torch.long)


@pytest.fixture
def backbone(topk: TopKData) -> ncf.NCF:
    torch.manual_seed(0)
    model = ncf.NCF.build(topk, SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def score_by_hand(backbone: ncf.NCF, user: int, item: int) -> float:
    """He et al. 2017, eq. (12) without the sigmoid, in plain numbers."""
    state = {name: value.tolist() for name, value in backbone.state_dict().items()}
    user_D, item_D = state["users.weight"][user], state["items.weight"][item]
    hidden = user_D[4:] + item_D[4:]
    for layer in ("first", "above.2", "above.5"):
        sums = [sum(w * x for w, x in zip(row, hidden, strict=True)) for row in state[f"{layer}.weight"]]
        hidden = [max(0.0, s + b) for s, b in zip(sums, state[f"{layer}.bias"], strict=True)]
    joined = [p * q for p, q in zip(user_D[:4], item_D[:4], strict=True)] + hidden
    return sum(h * x for h, x in zip(state["output.weight"][0], joined, strict=True))


@pytest.mark.parametrize("chunk", [1, 50, 700, 10**6])
def test_scores_by_hand_in_any_chunk(backbone: ncf.NCF, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one pair, of some items of one user, of some users, and one for all."""
    monkeypatch.setattr(ncf, "HIDDEN_PER_CHUNK", chunk)
    sizes = []
    for layer in backbone.above:
        layer.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    users_B = torch.tensor([3, 0, 59, 3, 21])
    scores_BI = backbone.score(users_B, NO_HISTORY[:5])
    assert scores_BI.shape == (5, 40) and max(sizes) <= max(chunk, 7)
    for row, user in enumerate(users_B.tolist()):
        want_I = [score_by_hand(backbone, user, item) for item in range(40)]
        np.testing.assert_allclose(scores_BI[row].tolist(), want_I, rtol=1e-4, atol=1e-5)


def test_pairs_score_as_the_catalogue_does(backbone: ncf.NCF) -> None:
    users_N, items_N = torch.tensor([1, 7, 7]), torch.tensor([[39, 0], [2, 5], [0, 5]])
    pairs_N2 = backbone.pair_scores(backbone.users(users_N)[:, None], backbone.items(items_N))
    want_N2 = backbone.score(users_N, NO_HISTORY[:3]).gather(1, items_N)
    torch.testing.assert_close(pairs_N2, want_N2)


def test_loss_by_loops(backbone: ncf.NCF, topk: TopKData) -> None:
    """Eq. (7) a training pair, -log sigmoid of the difference an extra pair, and the penalty."""
    data = replace(topk, extra_pairs=np.array([[3, 1, 2]] * 40))
    batch = next(backbone.batches(data, np.random.default_rng(0)))
    assert 0 < batch[3].sum() < len(batch[3])
    users_UD, items_ID = backbone.users.weight.detach(), backbone.items.weight.detach()
    total, squares = 0.0, 0.0
    for user, positive, negatives, sampled in zip(*(part.tolist() for part in batch), strict=True):
        observed = score_by_hand(backbone, user, positive)
        others = [score_by_hand(backbone, user, item) for item in negatives]
        if sampled:
            total -= math.log(1 / (1 + math.exp(-observed)))
            total -= sum(math.log(1 - 1 / (1 + math.exp(-other))) for other in others)
        else:
            total -= math.log(1 / (1 + math.exp(others[0] - observed)))
        rows = [users_UD[user], *(items_ID[item] for item in (positive, *negatives))]
        squares += sum(float(row @ row) for row in rows)
    count = len(batch[0])
    assert abs(backbone.loss(batch).item() - (total + 0.3 * squares / 2) / count) < 1e-4


def test_negatives_are_unseen_and_extra_pairs_keep_their_own(backbone: ncf.NCF, topk: TopKData) -> None:
    extra = np.array([[0, 39, 38], [3, 1, 2]])
    batches = list(backbone.batches(replace(topk, extra_pairs=extra), np.random.default_rng(0)))
    users_N, positives_N, negatives_NK, sampled_N = (torch.cat(parts) for parts in zip(*batches, strict=True))
    pairs = [(user, item) for user, items in enumerate(topk.sequences) for item in items.tolist()]
    found = torch.stack([users_N, positives_N], dim=1)[sampled_N].tolist()
    assert sorted(map(tuple, found)) == sorted(pairs)
    for user, negatives_K in zip(users_N[sampled_N].tolist(), negatives_NK[sampled_N], strict=True):
        assert not set(negatives_K.tolist()) & set(topk.sequences[user].tolist())
    assert negatives_NK[sampled_N].unique(dim=1).shape[1] == 3
    kept = torch.stack([users_N, positives_N, negatives_NK[:, 0]], dim=1)[~sampled_N]
    assert sorted(kept.tolist()) == extra.tolist()


def test_vectors_are_gmfs_then_mlps(backbone: ncf.NCF) -> None:
    """Without the MLP part of h, the score is GMF's: a weighed dot product of the vectors' first halves."""
    users_B = torch.tensor([5, 9])
    users_BD, items_ID = backbone.user_vectors(users_B, NO_HISTORY[:2]), backbone.item_vectors()
    assert users_BD.shape == (2, 8) and items_ID.shape == (40, 8)
    with torch.no_grad():
        backbone.output.weight[0, 4:] = 0
    want_BI = torch.einsum("be,ie,e->bi", users_BD[:, :4], items_ID[:, :4], backbone.output.weight[0, :4])
    torch.testing.assert_close(backbone.score(users_B, NO_HISTORY[:2]), want_BI)
