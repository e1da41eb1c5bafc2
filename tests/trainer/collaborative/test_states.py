"""What each backbone makes of the items of a history (Laser's C_u), against what it ranks by.

Shapes: B users, L history length, N states, D vector width, I items.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.bert4rec import BERT4Rec
from recloom.trainer.collaborative.data import TopKData, pad_histories
from recloom.trainer.collaborative.registry import backbone_class, backbone_module

MAX_LENGTH, WIDTH = 6, 8
SEQUENTIAL = ("sasrec", "gru4rec", "nextitnet", "cl4srec", "bert4rec")
LENGTHS = (1, 2, 4, 6, 5)


@pytest.fixture(scope="module", params=(*SEQUENTIAL, "mf"))
def backbone(request: pytest.FixtureRequest, topk: TopKData) -> Backbone:
    return built(request.param, topk)


def built(name: str, data: TopKData) -> Backbone:
    """Random weights, large enough to tell all items and places apart, in double precision."""
    module, fields = backbone_module(name), {} if name == "mf" else {"max_length": MAX_LENGTH}
    torch.manual_seed(3)
    backbone = backbone_class(module).build(data, module.Settings(embedding=WIDTH, **fields))
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return backbone.double().eval().requires_grad_(False)


def histories(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 40, length) for length in lengths]


def padded(lists: list[np.ndarray], backbone: Backbone, length: int | None = None) -> Tensor:
    return pad_histories(lists, length or max(map(len, lists)), backbone.num_items)


def kept(lists: list[np.ndarray], backbone: Backbone) -> list[int]:
    """States of each history: its items that the model sees, and the [mask] behind them."""
    limit = backbone.history_length or max(map(len, lists))
    return [min(limit, len(items)) + isinstance(backbone, BERT4Rec) for items in lists]


def test_shapes_and_what_is_real(backbone: Backbone) -> None:
    states_BND, real_BN = backbone.states(padded(histories(), backbone))
    counts = kept(histories(), backbone)
    assert states_BND.shape == (5, max(counts), WIDTH) and real_BN.shape == states_BND.shape[:2]
    assert real_BN.dtype == torch.bool and real_BN.sum(1).tolist() == counts
    places_N = torch.arange(max(counts))
    assert torch.equal(real_BN, places_N >= max(counts) - torch.tensor(counts)[:, None]), "padding is left"
    assert states_BND.isfinite().all(), "also at padding"


def test_states_depend_on_their_own_history_alone(backbone: Backbone) -> None:
    """Each by itself, without padding, has the states that it has in the batch."""
    states_BND, real_BN = backbone.states(padded(histories(), backbone))
    for row, items in enumerate(histories()):
        alone_1ND, real_1N = backbone.states(padded([items], backbone))
        assert real_1N.all()
        torch.testing.assert_close(states_BND[row][real_BN[row]], alone_1ND[0])


def test_states_tell_items_apart(backbone: Backbone) -> None:
    one, other = padded([np.array([1, 2, 3])], backbone), padded([np.array([1, 2, 4])], backbone)
    first, second = backbone.states(one)[0][0], backbone.states(other)[0][0]
    differs_N = (first - second).abs().amax(1) > 1e-3
    causal = not isinstance(backbone, BERT4Rec)
    assert differs_N.tolist() == ([False, False, True] if causal else [True] * 4)


def test_the_latest_items_of_a_long_history(backbone: Backbone) -> None:
    limit = backbone.history_length
    long = histories((9, 11))
    states_BND, real_BN = backbone.states(padded(long, backbone, 11))
    if limit == 0:
        assert real_BN.sum(1).tolist() == [9, 11], "the caller cuts where the model has no limit"
        return
    latest_BND, latest_BN = backbone.states(padded([items[-limit:] for items in long], backbone))
    assert torch.equal(states_BND, latest_BND) and torch.equal(real_BN, latest_BN) and real_BN.all()
    assert real_BN.shape[1] == MAX_LENGTH


@pytest.mark.parametrize("name", SEQUENTIAL)
@pytest.mark.parametrize("lengths", [LENGTHS, (9, 3)])
def test_the_last_state_is_what_ranks(name: str, lengths: tuple[int, ...], topk: TopKData) -> None:
    """As the user's vector, but that of BERT4Rec goes through its projection first."""
    backbone: Any = built(name, topk)
    histories_BL = padded(histories(lengths), backbone)
    last_BD = backbone.states(histories_BL)[0][:, -1]
    users_BD = backbone.user_vectors(torch.arange(len(lengths)), histories_BL)
    torch.testing.assert_close(backbone.project(last_BD) if name == "bert4rec" else last_BD, users_BD)
    assert users_BD.std(0).max() > 1e-2, "users differ"


def test_direct_backbones_give_the_items_own_vectors(topk: TopKData) -> None:
    backbone = built("mf", topk)
    states_BND, real_BN = backbone.states(padded(histories(), backbone))
    vectors_ID = backbone.item_vectors()
    for row, items in enumerate(histories()):
        assert torch.equal(states_BND[row][real_BN[row]], vectors_ID[torch.from_numpy(items)])
    empty_BND, nothing_BN = backbone.states(torch.full((2, 3), backbone.num_items))
    assert empty_BND.shape == (2, 3, WIDTH) and not nothing_BN.any()


def test_states_of_training_mode_are_drawn(topk: TopKData) -> None:
    """So who freezes a backbone must switch it to evaluation, as `load_backbone` does."""
    backbone = built("sasrec", topk).train()
    histories_BL = padded(histories(), backbone)
    assert not torch.equal(backbone.states(histories_BL)[0], backbone.states(histories_BL)[0])
