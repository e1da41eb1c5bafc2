"""The fit loop on data with a known structure: it learns, stops on validation, and repeats itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from recloom.data_shards.errors import UserError
from recloom.trainer.collaborative import fit as fit_module
from recloom.trainer.collaborative.base import BackboneSettings
from recloom.trainer.collaborative.data import RatingData, TopKData
from recloom.trainer.collaborative.fit import fit, validation_value
from recloom.trainer.collaborative.registry import backbone_module

Make = Callable[..., BackboneSettings]

SMALL = {"embedding": 16, "batch_size": 64, "max_epochs": 40, "patience": 10}
SLOW = ("bert4rec", "ncf", "nextitnet", "gru4rec", "morec")
LONG = {name: {"max_epochs": 150, "patience": 40} for name in SLOW}


def data_of(name: str, topk: TopKData, rating: RatingData) -> TopKData | RatingData:
    return rating if backbone_module(name).TASK == "rating" else topk


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        *(("mf", 0.55), ("lightgcn", 0.55), ("mixgcf", 0.55), ("sgl", 0.55)),
        *(("sasrec", 0.85), ("bert4rec", 0.55), ("cl4srec", 0.75), ("deepfm", 0.4)),
        *(("ncf", 0.55), ("nextitnet", 0.85), ("gru4rec", 0.85), ("morec", 0.85)),
    ],
)
def test_learns_the_structure(
    name: str, bound: float, topk: TopKData, rating: RatingData, settings_of: Make
) -> None:
    """A random order of 40 items has N@10 about 0.12; only order tells which item comes next in a cycle.

    The ratings have a standard deviation of 1.3.
    """
    module, data = backbone_module(name), data_of(name, topk, rating)
    settings = settings_of(name, **{**SMALL, **LONG.get(name, {})})
    backbone, result = fit(module, data, settings, seed=0, progress=False)
    assert result.best_value < bound if name == "deepfm" else result.best_value > bound
    assert result.metric == ("RMSE" if name == "deepfm" else "N@10")
    assert validation_value(backbone, data) == result.best_value
    values = [value for _, _, value in result.curve]
    best = min(values) if name == "deepfm" else max(values)
    assert result.best_value == best and result.curve[values.index(best)][0] == result.best_epoch
    assert not backbone.training


@pytest.mark.parametrize(
    "name",
    [
        *("mf", "lightgcn", "mixgcf", "sgl", "ncf"),
        *("sasrec", "bert4rec", "cl4srec", "nextitnet", "gru4rec", "morec", "deepfm"),
    ],
)
def test_two_fits_are_equal_bit_for_bit(
    name: str, topk: TopKData, rating: RatingData, settings_of: Make
) -> None:
    module, data = backbone_module(name), data_of(name, topk, rating)
    settings = settings_of(name, **{**SMALL, "max_epochs": 3})
    first, result = fit(module, data, settings, seed=4, progress=False)
    torch.rand(3)
    second, again = fit(module, data, settings, seed=4, progress=False)
    assert result.curve == again.curve
    other, _ = fit(module, data, settings, seed=5, progress=False)
    states = [backbone.state_dict() for backbone in (first, second, other)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not all(torch.equal(value, states[2][key]) for key, value in states[0].items())


def test_the_callers_random_state_is_left_alone(topk: TopKData) -> None:
    module = backbone_module("sasrec")
    torch.manual_seed(1)
    want = torch.rand(2)
    torch.manual_seed(1)
    fit(module, topk, module.Settings(**{**SMALL, "max_epochs": 1}), seed=0, progress=False)
    assert torch.equal(torch.rand(2), want)


def test_stops_after_patience_and_restores_the_best(topk: TopKData, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation values are given, so the best epoch is known; its weights come from a shorter fit."""
    module = backbone_module("mf")
    calls: list[tuple[int, int, float]] = []
    script = iter([0.1, 0.3, 0.2, 0.3, 0.1, 0.9])
    monkeypatch.setattr(fit_module, "validation_value", lambda backbone, data: next(script))
    stopped, result = fit(
        module, topk, module.Settings(**{**SMALL, "patience": 3}), 0, lambda *call: calls.append(call)
    )
    assert (result.best_epoch, result.best_value) == (2, 0.3)
    assert calls == [(1, 40, 0.1), (2, 40, 0.3), (3, 40, 0.2), (4, 40, 0.3), (5, 40, 0.1)]
    script = iter([0.0, 1.0])
    second, _ = fit(module, topk, module.Settings(**{**SMALL, "max_epochs": 2}), 0, False)
    assert torch.equal(stopped.state_dict()["users.weight"], second.state_dict()["users.weight"])


def test_nothing_to_train_is_validated_once(topk: TopKData, settings_of: Make) -> None:
    settings, calls = settings_of("vectors"), []
    backbone, result = fit(backbone_module("vectors"), topk, settings, 0, lambda *call: calls.append(call))
    value = validation_value(backbone, topk)
    assert (result.metric, result.best_epoch, result.best_value) == ("N@10", 0, value)
    assert result.curve == [(0, 0.0, value)] and 0 < value < 1
    assert calls == [(0, 200, value)] and not backbone.training


def test_evaluates_every_few_epochs_and_at_the_end(topk: TopKData) -> None:
    module = backbone_module("mf")
    settings = module.Settings(**{**SMALL, "max_epochs": 7, "evaluate_every": 3})
    _, result = fit(module, topk, settings, seed=0, progress=False)
    assert [epoch for epoch, _, _ in result.curve] == [3, 6, 7]


def test_validation_looks_at_histories_not_at_augmented_sequences(topk: TopKData) -> None:
    module = backbone_module("sasrec")
    backbone, result = fit(module, topk, module.Settings(**{**SMALL, "max_epochs": 30}), 0, False)
    spoilt = [np.append(items, 39 - items[-1]) for items in topk.sequences]
    assert validation_value(backbone, replace(topk, sequences=spoilt)) < 0.6 * result.best_value
    shown = replace(topk, sequences=spoilt, histories=topk.sequences)
    assert validation_value(backbone, shown) == result.best_value


def test_seen_items_are_no_competition(topk: TopKData) -> None:
    backbone = backbone_module("mf").MF.build(topk, backbone_module("mf").Settings())
    target_only = [np.setdiff1d(np.arange(40), [item]) for item in topk.valid_items]
    assert validation_value(backbone, replace(topk, seen=target_only)) == 1.0


@pytest.mark.parametrize("name", ["lightgcn", "mixgcf", "sgl", "ncf"])
@pytest.mark.parametrize(("better", "worse"), [(30, 31), (31, 30)])
def test_extra_pairs_teach_the_model(name: str, topk: TopKData, better: int, worse: int) -> None:
    """Users without items of group 3 learn the order of two of its items from pairs alone."""
    users = np.flatnonzero(np.arange(topk.num_users) % 4 == 0)
    pairs = np.stack([users, np.full_like(users, better), np.full_like(users, worse)], axis=1)
    module = backbone_module(name)
    settings = module.Settings(**{**SMALL, "max_epochs": 30, "patience": 30})
    backbone, _ = fit(module, replace(topk, extra_pairs=pairs), settings, seed=0, progress=False)
    with torch.no_grad():
        scores_BI = backbone.score(torch.from_numpy(users), torch.zeros(len(users), 0, dtype=torch.long))
    assert (scores_BI[:, better] > scores_BI[:, worse]).all()


def test_nothing_to_validate_on(topk: TopKData, rating: RatingData) -> None:
    none = replace(topk, valid_items=np.full(topk.num_users, -1))
    with pytest.raises(UserError, match="mf: no user has a validation item"):
        fit(backbone_module("mf"), none, backbone_module("mf").Settings(), 0, False)
    bare = replace(rating, valid=rating.valid.select(np.zeros(len(rating.valid), dtype=bool)))
    with pytest.raises(UserError, match="deepfm: no user has a validation item"):
        fit(backbone_module("deepfm"), bare, backbone_module("deepfm").Settings(), 0, False)


def test_sequences_of_one_item_teach_no_order(topk: TopKData) -> None:
    short = replace(topk, sequences=[items[:1] for items in topk.sequences])
    module = backbone_module("sasrec")
    with pytest.raises(UserError, match="sasrec: the training data give no example"):
        fit(module, short, module.Settings(), 0, False)


def test_divergence_is_an_error(rating: RatingData) -> None:
    module = backbone_module("deepfm")
    with pytest.raises(UserError, match="deepfm: the training diverged.*lower learning_rate"):
        fit(module, rating, module.Settings(learning_rate=1e12, max_epochs=20), 0, False)
