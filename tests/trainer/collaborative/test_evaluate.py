"""Full-catalogue ranking: masks, ties, missing targets, chunks, against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recloom.trainer.collaborative import evaluate
from recloom.trainer.collaborative.base import BackboneSettings
from recloom.trainer.collaborative.data import RatingData, TopKData
from recloom.trainer.collaborative.deepfm import DeepFM, Settings
from recloom.trainer.collaborative.tasks import SequentialBackbone


class Fixed(SequentialBackbone):
    """Scores from a table; the last item of the history adds its own row."""

    history_length = 1

    def __init__(self, table_UI: Tensor) -> None:
        sizes = {"num_users": table_UI.shape[0], "num_items": table_UI.shape[1]}
        super().__init__(BackboneSettings(model="fixed"), sizes)
        self.table_UI = table_UI

    def loss(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def user_vectors(self, users_B: Tensor, histories_BL: Tensor) -> Tensor:
        raise NotImplementedError

    def item_vectors(self) -> Tensor:
        raise NotImplementedError

    def score(self, users_B: Tensor, histories_BL: Tensor) -> Tensor:
        return self.table_UI[users_B] + torch.eye(self.num_items + 1)[histories_BL[:, -1], :-1]


def arrays(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int32) for row in rows]


def test_masked_lists_and_ranks_by_hand() -> None:
    backbone = Fixed(torch.tensor([[5.0, 4, 3, 2, 1], [1.0, 1, 1, 1, 1]]))
    users, histories, seen = np.array([0, 1]), arrays([], [2]), arrays([0, 2], [])
    items_Bk, scores_Bk = evaluate.rank_topk(backbone, users, histories, seen, 4)
    assert items_Bk.tolist() == [[1, 3, 4, -1], [2, 0, 1, 3]]
    assert scores_Bk.tolist() == [[4, 2, 1, -np.inf], [2, 1, 1, 1]]
    ranks = evaluate.target_ranks(backbone, users, histories, seen, np.array([3, 0]))
    assert ranks.tolist() == [2, 5]  # user 1: item 2 is better, three others tie with the target
    assert evaluate.target_ranks(backbone, users, histories, seen, np.array([2, 2])).tolist() == [np.inf, 1]


def test_more_places_than_items() -> None:
    backbone = Fixed(torch.tensor([[1.0, 2]]))
    items_Bk, _ = evaluate.rank_topk(backbone, np.array([0]), arrays([]), arrays([]), 4)
    assert items_Bk.tolist() == [[1, 0, -1, -1]]


def test_nan_scores_never_help_the_target() -> None:
    backbone = Fixed(torch.tensor([[torch.nan, 1, 2], [torch.nan, torch.nan, torch.nan]]))
    ranks = evaluate.target_ranks(
        backbone, np.array([0, 1]), arrays([], []), arrays([], []), np.array([2, 0])
    )
    assert ranks.tolist() == [2, 3]


@pytest.mark.parametrize("chunk", [1, 70, 10**6])
def test_equals_plain_loops_in_any_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "SCORES_PER_CHUNK", chunk)
    rng = np.random.default_rng(0)
    backbone = Fixed(torch.from_numpy(rng.integers(0, 6, size=(20, 9)).astype(np.float32))).train()
    users = rng.permutation(20)[:13]
    seen = [rng.permutation(9)[: rng.integers(0, 6)] for _ in users]
    targets = np.array([rng.choice(np.setdiff1d(np.arange(9), items)) for items in seen])
    ranks = evaluate.target_ranks(backbone, users, seen, seen, targets)
    items_Bk, _ = evaluate.rank_topk(backbone, users, seen, seen, 9)
    for row, (user, past, target) in enumerate(zip(users, seen, targets, strict=True)):
        scores = backbone.table_UI[user].tolist()
        if len(past):
            scores[past[-1]] += 1
        left = [item for item in range(9) if item not in past]
        rivals = [item for item in left if item != target and scores[item] >= scores[target]]
        assert ranks[row] == 1 + len(rivals)
        order = sorted(left, key=lambda item: (-scores[item], item))
        assert items_Bk[row].tolist() == order + [-1] * (9 - len(order))
    assert backbone.training


def test_metrics_come_in_the_order_of_the_users(topk: TopKData) -> None:
    table_UI = torch.zeros(topk.num_users, topk.num_items)
    users = np.array([9, 4])
    table_UI[9, topk.valid_items[9]] = 1
    histories = [topk.sequences[user] for user in users]
    values = evaluate.evaluate_topk(
        Fixed(table_UI), users, histories, histories, topk.valid_items[users], (3,)
    )
    assert values["H@3"].tolist() == [1, 0] and values["N@3"].tolist() == [1, 0]


def test_rating_chunks_agree(rating: RatingData, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = DeepFM.build(rating, Settings())
    whole = evaluate.predict_ratings(backbone, rating.train.user_N, rating.train.item_N)
    monkeypatch.setattr(evaluate, "PAIRS_PER_CHUNK", 50)
    parts = evaluate.predict_ratings(backbone, rating.train.user_N, rating.train.item_N)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    assert whole.shape == (len(rating.train),) and whole.dtype == np.float32
