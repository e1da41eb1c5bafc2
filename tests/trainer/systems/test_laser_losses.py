"""Laser's losses against loops and PyTorch's cross-entropy, and how large the tensors are that they make.

Shapes: S users, I items, H width of the LLM, K experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recloom.kernels import catalog_softmax as op
from recloom.trainer.expert_load import collapsed_expert
from recloom.trainer.systems.laser.bituning import BiTuningOutput
from recloom.trainer.systems.laser.losses import (
    balance_losses,
    contrastive_losses,
    laser_losses,
)
from recloom.trainer.systems.laser.router import Router, RouterStatistics


def drawn(users: int, items: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    users_SH, items_IH = (torch.randn(n, width, generator=generator).double() for n in (users, items))
    return users_SH.requires_grad_(), items_IH, torch.randint(items, (users,), generator=generator)


def make_router(scores: list[list[float]], dispatched: list[list[float]]) -> RouterStatistics:
    scores_SK = torch.tensor(scores, dtype=torch.float64)
    return RouterStatistics(scores_SK, torch.tensor(dispatched, dtype=torch.float64), scores_SK.argmax(1))


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 60), st.integers(1, 8), st.floats(0.02, 2.0), st.integers(0, 99))
def test_contrastive_equals_cross_entropy_over_all_cosines(
    users: int, items: int, width: int, temperature: float, seed: int
) -> None:
    users_SH, items_IH, targets_S = drawn(users, items, width, seed)
    got_S = contrastive_losses(users_SH, items_IH, targets_S, temperature)
    cosines_SI = F.cosine_similarity(users_SH[:, None], items_IH[None], dim=2)
    want_S = F.cross_entropy(cosines_SI / temperature, targets_S, reduction="none")
    torch.testing.assert_close(got_S, want_S, atol=1e-6, rtol=0)
    got_SH, want_SH = (torch.autograd.grad(loss_S.sum(), users_SH)[0] for loss_S in (got_S, want_S))
    torch.testing.assert_close(got_SH, want_SH, atol=1e-6, rtol=1e-6)


def test_no_gradient_into_the_items() -> None:
    users_SH, items_IH, targets_S = drawn(3, 20, 4)
    contrastive_losses(users_SH, items_IH.requires_grad_(), targets_S, 0.05).sum().backward()
    assert items_IH.grad is None and users_SH.grad is not None


class Largest(TorchDispatchMode):
    """Elements of the largest tensor made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                stored = value.untyped_storage().nbytes() // value.element_size()
                self.elements = max(self.elements, stored)
        return result


def test_no_tensor_of_users_times_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "TILE_ELEMENTS", 4096)
    users_SH, items_IH, targets_S = drawn(256, 5000, 8)
    with Largest() as seen:
        contrastive_losses(users_SH, items_IH, targets_S, 0.05).sum().backward()
    assert 0 < seen.elements <= items_IH.numel() < 256 * 5000 / 10


@st.composite
def routed(draw: st.DrawFn) -> list[list[list[float]]]:
    """Scores over experts of each item of each user."""
    experts = draw(st.integers(1, 4))
    row = st.lists(st.floats(-3, 3), min_size=experts, max_size=experts)
    return draw(st.lists(st.lists(row, min_size=1, max_size=5), min_size=1, max_size=4))


@settings(max_examples=40)
@given(routed())
def test_balance_equals_loops(matches: list[list[list[float]]]) -> None:
    """Through the router, with an identity for its weight."""
    experts, longest = len(matches[0][0]), max(map(len, matches))
    router = Router(experts, experts).double()
    router.weight_KD.data = torch.eye(experts).double()
    C_SNK = torch.zeros(len(matches), longest, experts).double()
    mask_SN = torch.zeros(len(matches), longest, dtype=torch.bool)
    want = []
    for s, items in enumerate(matches):
        share, mass = [0.0] * experts, [0.0] * experts
        for i, match in enumerate(items):
            C_SNK[s, i], mask_SN[s, i] = torch.tensor(match).double(), True
            p = torch.tensor(match).double().softmax(0).tolist()
            share[p.index(max(p))] += 1 / len(items)
            mass = [one + other / len(items) for one, other in zip(mass, p, strict=True)]
        want.append(experts * sum(f * P for f, P in zip(share, mass, strict=True)))
    assert balance_losses(router(C_SNK, mask_SN)).tolist() == pytest.approx(want, abs=1e-6)


def test_balance_at_its_ends() -> None:
    even, one = [0.25] * 4, [0.0, 1.0, 0.0, 0.0]
    got_S = balance_losses(make_router([even, one, even], [even, one, one]))
    assert got_S.tolist() == pytest.approx([1, 4, 1])


def test_total_is_the_weighted_sum_of_each_user() -> None:
    users_SH, items_IH, targets_S = drawn(3, 20, 4)
    router = make_router([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]], [[1, 0], [0.5, 0.5], [0, 1]])
    losses = laser_losses(BiTuningOutput(users_SH, router), items_IH, targets_S, 0.05, 0.01)
    assert losses.balance_S.tolist() == pytest.approx([1.8, 1.0, 1.0])
    torch.testing.assert_close(losses.total_S, losses.contrastive_S + 0.01 * losses.balance_S)
    alone = laser_losses(BiTuningOutput(users_SH, None), items_IH, targets_S, 0.05, 0.01)
    assert torch.equal(alone.total_S, losses.contrastive_S) and not alone.balance_S.any()


def test_balance_alone_evens_the_scores_of_users_of_several_kinds() -> None:
    """In profile paper no other loss reaches the router: it must be able to undo a collapse."""
    torch.manual_seed(0)
    kind_SD = torch.randn(8, 6)[torch.randint(8, (200,))]
    C_SND, mask_SN = torch.randn(200, 5, 6) + kind_SD[:, None] + 0.7, torch.ones(200, 5, dtype=torch.bool)
    router = Router(6, 4)
    router.weight_KD.data = torch.cat([torch.ones(1, 6), torch.zeros(3, 6)]) + 0.1 * torch.randn(4, 6)
    before = router(C_SND, mask_SN)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        balance_losses(router(C_SND, mask_SN)).mean().backward()
        optimizer.step()
    after = router(C_SND, mask_SN)
    assert balance_losses(before).mean() > 2.5 and balance_losses(after).mean() < 1.1
    shares = [router.chosen_B.bincount(minlength=4) / 200 for router in (before, after)]
    assert [collapsed_expert(share_K.tolist()) for share_K in shares] == [0, None]


def test_collapse() -> None:
    assert collapsed_expert([0.02, 0.95, 0.03]) == 1 and collapsed_expert(np.array([0.1, 0.9])) == 1
    assert collapsed_expert([0.75, 0.25, 0.0]) is None
    assert collapsed_expert([1.0]) is None, "one expert has nothing to share"


@settings(max_examples=40)
@given(routed())
def test_balance_over_a_row_equals_loops(matches: list[list[list[float]]]) -> None:
    """As in Switch, over the users given: f and P are plain means of theirs, and all have the same loss."""
    experts = len(matches[0][0])
    shares, masses = [], []
    for items in matches:
        rows = [torch.tensor(match).double().softmax(0).tolist() for match in items]
        best = [row.index(max(row)) for row in rows]
        shares.append([best.count(expert) / len(rows) for expert in range(experts)])
        masses.append([sum(row[expert] for row in rows) / len(rows) for expert in range(experts)])
    f, P = ([sum(column) / len(matches) for column in zip(*table, strict=True)] for table in (shares, masses))
    want = experts * sum(a * b for a, b in zip(f, P, strict=True))
    got_S = balance_losses(make_router(masses, shares), "row")
    assert got_S.tolist() == pytest.approx([want] * len(matches), abs=1e-6)
    for s in range(len(matches)):
        alone_S = balance_losses(make_router([masses[s]], [shares[s]]), "row")
        assert alone_S.tolist() == pytest.approx(
            balance_losses(make_router([masses[s]], [shares[s]])).tolist()
        )


def test_balance_over_a_row_rewards_users_who_differ() -> None:
    """Each with an expert of its own costs 1, the least; all with one expert, K. One by one all cost K."""
    apart, together = torch.eye(4).tolist(), [[0.0, 0.0, 1.0, 0.0]] * 4
    assert balance_losses(make_router(apart, apart), "row").tolist() == pytest.approx([1] * 4)
    assert balance_losses(make_router(together, together), "row").tolist() == pytest.approx([4] * 4)
    for scores in (apart, together):
        assert balance_losses(make_router(scores, scores)).tolist() == pytest.approx([4] * 4)


def test_gradient_of_balance_over_a_row() -> None:
    """Through P alone: d(sum over S users) / d scores_sj is K f_j, whoever the user is."""
    dispatched = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
    router = make_router([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], dispatched)
    scores_SK = router.scores_BK.requires_grad_()
    balance_losses(router._replace(scores_BK=scores_SK), "row").sum().backward()
    assert scores_SK.grad is not None
    assert scores_SK.grad.tolist() == [pytest.approx([3 * 0.75, 3 * 0.25, 0.0])] * 2


def test_the_total_over_a_row() -> None:
    """The weighted sum again; where the users' f and P differ it is another loss than the user's own."""
    users_SH, items_IH, targets_S = drawn(2, 20, 4)
    router = make_router([[0.9, 0.1], [0.2, 0.8]], [[1, 0], [0, 1]])
    row = laser_losses(BiTuningOutput(users_SH, router), items_IH, targets_S, 0.05, 0.3, "row")
    user = laser_losses(BiTuningOutput(users_SH, router), items_IH, targets_S, 0.05, 0.3)
    assert row.balance_S.tolist() == pytest.approx([1.0, 1.0])
    assert user.balance_S.tolist() == pytest.approx([1.8, 1.6])
    torch.testing.assert_close(row.total_S, row.contrastive_S + 0.3 * row.balance_S)
