"""A few epochs on MovieLens-100K beat popularity and the mean rating by a wide margin, on validation."""

from __future__ import annotations

import numpy as np
import pytest

from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.tables import Tables
from recloom.trainer import metrics
from recloom.trainer.collaborative.data import RatingData, TopKData
from recloom.trainer.collaborative.fit import fit
from recloom.trainer.collaborative.registry import backbone_module, backbone_names


def popularity_ndcg(data: TopKData) -> float:
    """N@10 of ranking unseen items by their number of training interactions."""
    count_I = np.bincount(np.concatenate(data.sequences), minlength=data.num_items).astype(float)
    ranks = []
    for user in np.flatnonzero(data.valid_items >= 0):
        scores_I = count_I.copy()
        scores_I[data.seen[user]] = -1
        ranks.append((scores_I >= scores_I[data.valid_items[user]]).sum())
    return float(metrics.ndcg(np.array(ranks), 10).mean())


QUICK: dict[str, dict[str, float]] = {
    "lightgcn": {"max_epochs": 10, "evaluate_every": 10, "batch_size": 2048, "learning_rate": 0.02},
    "sasrec": {"max_epochs": 3, "evaluate_every": 3},
}


@pytest.mark.parametrize("name", QUICK)
def test_beats_popularity(ml100k: Tables, name: str) -> None:
    split = leave_one_out(ml100k, positive_rating=4.0).topk
    data = TopKData.from_split(split, ml100k.num_users, ml100k.num_items)
    module = backbone_module(name)
    settings = module.Settings(embedding=32, **QUICK[name])
    _, result = fit(module, data, settings, seed=0, progress=False)
    assert result.best_value > 1.35 * popularity_ndcg(data)


@pytest.mark.parametrize("name", backbone_names("rating"))
def test_beats_the_mean_rating(ml100k: Tables, name: str) -> None:
    split = leave_one_out(ml100k, positive_rating=4.0).rating
    data = RatingData.from_split(ml100k, split)
    module = backbone_module(name)
    _, result = fit(module, data, module.Settings(max_epochs=4, evaluate_every=4), seed=0, progress=False)
    mean = np.full(len(data.valid), data.train.rating_N.mean())
    assert result.best_value < metrics.rmse(mean, data.valid.rating_N) - 0.1
