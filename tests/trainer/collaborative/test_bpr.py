"""Negatives, triples and the BPR loss, each against a computation written out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from recloom.trainer.collaborative import mf
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.tasks import NegativeSampler, bpr_loss, epoch_order, epoch_triples


class Counting(np.random.Generator):
    """In place of a random generator: the ranks 0, 1, ... in turn."""

    def integers(self, low: Any, high: Any = None, *args: Any, **kwargs: Any) -> Any:
        return np.arange(len(high)) % high


@given(st.lists(st.sets(st.integers(0, 8), max_size=8), min_size=1, max_size=6))
def test_every_rank_is_one_item_outside_the_set(sets: list[set[int]]) -> None:
    """The ranks 0 .. n-1 of a user map one to one onto the complement, so uniform ranks are uniform items."""
    sampler = NegativeSampler([np.array(sorted(items), dtype=np.int32) for items in sets], num_items=9)
    for user, items in enumerate(sets):
        complement = [item for item in range(9) if item not in items]
        users_N = np.full(len(complement), user)
        assert sampler.sample(users_N, Counting(np.random.PCG64())).tolist() == complement


def test_triples_are_the_training_pairs_plus_the_extra_ones(topk: TopKData) -> None:
    extra = np.array([[0, 39, 38], [3, 1, 2]])
    sampler = NegativeSampler(topk.sequences, topk.num_items)
    plain = epoch_triples(topk, sampler, np.random.default_rng(0))
    more = epoch_triples(replace(topk, extra_pairs=extra), sampler, np.random.default_rng(0))
    pairs = [(user, item) for user, items in enumerate(topk.sequences) for item in items.tolist()]
    assert [tuple(pair) for pair in plain[:, :2].tolist()] == pairs
    assert all(negative not in topk.sequences[user] for user, _, negative in plain)
    np.testing.assert_array_equal(more, np.concatenate([plain, extra]))


def test_extra_pairs_add_their_terms_to_the_loss(topk: TopKData) -> None:
    """Eq. (3): the sum over D' is the sum over D plus -log sigmoid of each extra pair's difference."""
    settings = mf.Settings(weight_decay=0.0, batch_size=100_000)
    torch.manual_seed(0)
    backbone = mf.MF.build(topk, settings)
    extra = np.array([[0, 39, 38], [3, 1, 2], [3, 5, 1]])
    sums = []
    for data in (topk, replace(topk, extra_pairs=extra)):
        (batch,) = backbone.batches(data, np.random.default_rng(5))
        sums.append(backbone.loss(batch).item() * len(batch[0]))
    users, items = backbone.users.weight.tolist(), backbone.items.weight.tolist()
    added = 0.0
    for user, better, worse in extra.tolist():
        difference = sum(
            u * (b - w) for u, b, w in zip(users[user], items[better], items[worse], strict=True)
        )
        added += math.log(1 + math.exp(-difference))
    assert abs(sums[1] - sums[0] - added) < 1e-3
    assert added > 1.5


def test_bpr_loss_by_hand() -> None:
    positive_N, negative_N = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([0.0, 0.5, 1.0])
    want = sum(-math.log(1 / (1 + math.exp(-x))) for x in (1.0, -0.5, -3.0)) / 3
    assert abs(bpr_loss(positive_N, negative_N).item() - want) < 1e-6


def test_penalty_is_on_the_embeddings_of_the_batch(topk: TopKData) -> None:
    torch.manual_seed(0)
    free, held = (mf.MF.build(topk, mf.Settings(weight_decay=weight)) for weight in (0.0, 0.5))
    held.load_state_dict(free.state_dict())
    batch = tuple(torch.tensor(ids) for ids in ([0, 0], [1, 2], [3, 3]))
    rows = [free.users.weight[[0, 0]], free.items.weight[[1, 2]], free.items.weight[[3, 3]]]
    want = 0.5 * sum((row**2).sum().item() for row in rows) / 2 / 2
    assert abs(held.loss(batch).item() - free.loss(batch).item() - want) < 1e-5


def test_a_user_with_every_item_gives_no_triple() -> None:
    sequences = [np.arange(4, dtype=np.int32), np.array([0, 3], dtype=np.int32)]
    data = TopKData(2, 4, sequences, np.array([-1, 1]), sequences)
    triples = epoch_triples(data, NegativeSampler(sequences, 4), np.random.default_rng(0))
    assert triples[:, 0].tolist() == [1, 1] and set(triples[:, 2].tolist()) <= {1, 2}


def test_an_epoch_visits_every_row_once() -> None:
    batches = list(epoch_order(10, 4, np.random.default_rng(0)))
    assert [len(rows) for rows in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches).tolist()) == list(range(10))
