"""A-LLMRec's stage 1 against numpy, and what its gradient reaches.

Shapes: B sequences, L positions, N targets, D and W widths of items and texts, E of the joint embeddings.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import expit as sigmoid
from torch import Tensor, nn

from recloom.trainer.systems.a_llmrec.alignment import (
    Alignment,
    AlignmentSettings,
    Losses,
    Profile,
    Targets,
    freeze_recommender,
    sequence_weights,
    target_mask,
)

D, W, E = 5, 7, 4
REAL_BL = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
ROWS = ("users_ND", "positives_ND", "negatives_ND", "positive_text_NW", "negative_text_NW")
SWITCHES = ("matching", "item_recon", "text_recon", "rec")


def make_targets(mask_BL: Tensor, scale: float = 1.0) -> Targets:
    drawn, count = torch.Generator().manual_seed(1), int(mask_BL.sum())
    rows = [torch.randn(count, size, generator=drawn).double() * scale for size in (D, D, D, W, W)]
    return Targets(mask_BL, *rows)


def make_alignment(settings: AlignmentSettings) -> Alignment:
    torch.manual_seed(0)
    return Alignment(D, W, settings).double()


def all_switches() -> list[dict[str, bool]]:
    """Every setting of the four switches with at least one on."""
    return [dict(zip(SWITCHES, on, strict=True)) for on in product((True, False), repeat=4) if any(on)]


def reference(alignment: Alignment, targets: Targets, profile: str) -> dict[str, float]:
    """Equations 2-5 item by item, with nested means over sequences and their targets."""
    state = {name: value.numpy() for name, value in alignment.state_dict().items()}

    def layer(name: str, row: np.ndarray) -> np.ndarray:
        return state[f"{name}.weight"] @ row + state[f"{name}.bias"]

    def one_item(item: np.ndarray, text: np.ndarray) -> np.ndarray:
        e, q = sigmoid(layer("items.encoder", item)), sigmoid(layer("texts.encoder", text))
        pairs = ((e, q), (item, layer("items.decoder", e)), (text, layer("texts.decoder", q)))
        return np.array([((a - b) ** 2).mean() for a, b in pairs])

    def score(user: np.ndarray, item: np.ndarray) -> float:
        back = layer("items.decoder", sigmoid(layer("items.encoder", item)))
        return float(user @ back) / (D if profile == "released" else 1)

    arrays = [getattr(targets, name).numpy() for name in ROWS]
    per_sequence: list[list[np.ndarray]] = [[] for _ in targets.mask_BL]
    for (b, _), x, i, j, text_i, text_j in zip(targets.mask_BL.nonzero().tolist(), *arrays, strict=True):
        parts = one_item(i, text_i) + (one_item(j, text_j) if profile == "released" else 0)
        rec = -np.log(sigmoid(score(x, i))) - np.log(1 - sigmoid(score(x, j)))
        per_sequence[b].append(np.append(parts, rec))
    mean = np.mean([np.mean(rows, axis=0) for rows in per_sequence if rows], axis=0)
    return dict(zip(SWITCHES, mean.tolist(), strict=True))


@pytest.mark.parametrize("which", ["last", "all"])
@pytest.mark.parametrize(("profile", "beta"), [("paper", 0.5), ("released", 0.2)])
def test_losses_equal_numpy_for_every_switch(profile: Profile, beta: float, which: Any) -> None:
    targets = make_targets(target_mask(REAL_BL, which))
    for switches in all_switches():
        settings = AlignmentSettings.of(profile, width=E, targets=which, **switches)
        alignment = make_alignment(settings)
        losses, full = alignment(targets), reference(alignment, targets, profile)
        want = {name: value * switches[name] for name, value in full.items()}
        for name in SWITCHES:
            assert getattr(losses, name).item() == pytest.approx(want[name], abs=1e-6), name
        weighted = want["matching"] + 0.5 * want["item_recon"] + beta * want["text_recon"] + want["rec"]
        assert losses.total.item() == pytest.approx(weighted, abs=1e-6)


def test_profiles() -> None:
    assert AlignmentSettings.of("paper") == AlignmentSettings()
    released = AlignmentSettings.of("released", targets="all")
    assert (released.score, released.negatives_too, released.beta) == ("mean", True, 0.2)
    assert AlignmentSettings.of("paper", beta=0.2).beta == 0.2
    recommender = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    for settings, dropout in ((AlignmentSettings(), False), (released, True)):
        freeze_recommender(recommender, settings)
        assert recommender[1].training is dropout and not recommender[0].weight.requires_grad


def test_masks_and_weights() -> None:
    last_BL = target_mask(REAL_BL, "last")
    assert last_BL.nonzero().tolist() == [[0, 3], [1, 3], [2, 3]]
    assert target_mask(REAL_BL.flip(1), "last").nonzero().tolist() == [[0, 1], [1, 3], [2, 0]]
    assert torch.equal(target_mask(REAL_BL, "all"), REAL_BL)
    weights_N = sequence_weights(REAL_BL, torch.float64)
    torch.testing.assert_close(weights_N, torch.tensor([1 / 6] * 2 + [1 / 12] * 4 + [1 / 3]).double())
    torch.testing.assert_close(sequence_weights(last_BL, torch.float64), torch.full((3,), 1 / 3).double())


def test_what_does_not_fit_is_refused() -> None:
    targets = make_targets(REAL_BL)
    with pytest.raises(ValueError, match="names 3 targets"):
        replace(targets, mask_BL=target_mask(REAL_BL, "last"))
    with pytest.raises(ValueError, match="at least 1"):
        make_targets(torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="needs negative_text_NW"):
        make_alignment(AlignmentSettings.of("released", width=E))(replace(targets, negative_text_NW=None))
    with pytest.raises(ValidationError, match="all off"):
        AlignmentSettings(**dict.fromkeys(SWITCHES, False))


REACHED = {
    "matching": {"items.encoder", "texts.encoder", "text"},
    "item_recon": {"items.encoder", "items.decoder"},
    "text_recon": {"texts.encoder", "texts.decoder", "text"},
    "rec": {"items.encoder", "items.decoder"},
}


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_the_gradient_reaches_exactly_what_it_should(profile: Profile) -> None:
    for switches in all_switches():
        targets = make_targets(REAL_BL)
        tensors = {name: getattr(targets, name) for name in ROWS}
        for tensor in tensors.values():
            tensor.requires_grad_()
        alignment = make_alignment(AlignmentSettings.of(profile, width=E, **switches))
        alignment(targets).total.backward()
        grads = {name.rpartition(".")[0]: p.grad for name, p in alignment.named_parameters()}
        grads["text"] = targets.positive_text_NW.grad
        reached = {name for name, grad in grads.items() if grad is not None and grad.abs().max() > 0}
        assert reached == set().union(*(REACHED[name] for name in SWITCHES if switches[name]))
        negative_text = tensors["negative_text_NW"].grad
        assert (negative_text is not None) == (profile == "released" and "text" in reached)
        for name in ("users_ND", "positives_ND", "negatives_ND"):
            assert tensors[name].grad is None, "the recommender is frozen"


def check_gradient(settings: AlignmentSettings, of_text: bool) -> None:
    targets, alignment = make_targets(REAL_BL), make_alignment(settings)
    names = [name for name, _ in alignment.named_parameters()]

    def total(*values: Tensor) -> Tensor:
        *weights, text_NW, other_NW = values
        given = replace(targets, positive_text_NW=text_NW, negative_text_NW=other_NW)
        weights_by_name = dict(zip(names, weights, strict=True))
        losses: Losses = torch.func.functional_call(alignment, weights_by_name, (given,))
        return losses.total

    weights = [parameter.detach().clone().requires_grad_() for parameter in alignment.parameters()]
    texts = [getattr(targets, name).clone().requires_grad_(of_text) for name in ROWS[3:]]
    assert torch.autograd.gradcheck(total, (*weights, *texts))


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_gradcheck(profile: Profile) -> None:
    """The text that eq. 4 reconstructs is a constant, so its own gradient is checked without eq. 4."""
    check_gradient(AlignmentSettings.of(profile, width=E), of_text=False)
    check_gradient(AlignmentSettings.of(profile, width=E, text_recon=False), of_text=True)


def test_the_reconstructed_text_is_a_constant() -> None:
    targets = make_targets(target_mask(REAL_BL, "last"))
    text_NW = targets.positive_text_NW.requires_grad_()
    off = dict.fromkeys(("matching", "item_recon", "rec"), False)
    alignment = make_alignment(AlignmentSettings(width=E, **off))
    (got_NW,) = torch.autograd.grad(alignment(targets).text_recon, text_NW)
    loss = nn.functional.mse_loss(alignment.texts.decode(alignment.texts.encode(text_NW)), text_NW.detach())
    torch.testing.assert_close(got_NW, torch.autograd.grad(loss, text_NW)[0])


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_large_logits_stay_finite(profile: Profile) -> None:
    alignment = make_alignment(AlignmentSettings.of(profile, width=E))
    losses = alignment(make_targets(REAL_BL, scale=1e4))
    losses.total.backward()
    assert losses.rec.item() > 100
    assert all(p.grad is not None and p.grad.isfinite().all() for p in alignment.parameters())


def test_joint_embeddings_read_only_what_they_use() -> None:
    alignment = make_alignment(AlignmentSettings(width=E))
    items_ND, text_NW = torch.randn(6, D).double(), torch.randn(6, W).double()
    e_NE, q_NE = alignment.items.encode(items_ND), alignment.texts.encode(text_NW)
    cold_N = torch.tensor([0, 1, 0, 0, 1, 1], dtype=torch.bool)
    items_ND[cold_N], text_NW[~cold_N] = torch.nan, torch.nan
    joint_NE = alignment.joint_embeddings(items_ND, text_NW, cold_N)
    torch.testing.assert_close(joint_NE, torch.where(cold_N[:, None], q_NE, e_NE))
    joint_NE.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in alignment.parameters())
    whole_ND, no_N = torch.randn(6, D).double(), torch.zeros(6, dtype=torch.bool)
    for text in (None, text_NW):
        e_NE = alignment.joint_embeddings(whole_ND, text, no_N)
        torch.testing.assert_close(e_NE, alignment.items.encode(whole_ND))
    with pytest.raises(ValueError, match="needs text_NW"):
        alignment.joint_embeddings(whole_ND, None, cold_N)


def learn(settings: AlignmentSettings, steps: int = 300) -> tuple[np.ndarray, Tensor, Tensor]:
    """All losses of every step, then e and q of 40 items whose vectors and texts have one cause.

    A linear layer with normalised output, trained too, stands for the sentence encoder.
    """
    torch.manual_seed(0)
    causes_IC = torch.randn(40, 6)
    items_ID, raw_IW = causes_IC @ torch.randn(6, 16) / 6**0.5, causes_IC @ torch.randn(6, 24)
    alignment, sbert = Alignment(16, 24, settings), nn.Linear(24, 24)
    optimizer = torch.optim.Adam([*alignment.parameters(), *sbert.parameters()], lr=3e-3)
    every_B1, history = torch.ones(40, 1, dtype=torch.bool), []
    for _ in range(steps):
        other_I = (torch.arange(40) + torch.randint(1, 40, (40,))) % 40
        users_ID = (items_ID + torch.randn(40, 16)) / 4
        text_IW = nn.functional.normalize(sbert(raw_IW), dim=1) * 24**0.5
        rows = (users_ID, items_ID, items_ID[other_I], text_IW, text_IW[other_I])
        losses = alignment(Targets(every_B1, *rows))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append([value.item() for value in vars(losses).values()])
    joint = [alignment.joint_embeddings(items_ID, text_IW, torch.full((40,), cold)) for cold in (False, True)]
    return np.array(history), joint[0].detach(), joint[1].detach()


@pytest.mark.parametrize("profile", ["paper", "released"])
def test_learning_aligns_items_and_texts_without_collapse(profile: Profile) -> None:
    history, e_IE, q_IE = learn(AlignmentSettings.of(profile, width=16))
    before, after = history[:20].mean(0), history[-20:].mean(0)
    assert (
        (after[1:3] < 0.5 * before[1:3]).all() and after[3] < 0.97 * before[3] and after[4] < 0.7 * before[4]
    )
    assert (torch.cdist(q_IE, e_IE).argmin(1) == torch.arange(40)).float().mean() > 0.6  # chance: 0.025
    assert (after[0] / 2 if profile == "released" else after[0]) < 0.5 * e_IE.var(0).mean()
    alone = AlignmentSettings.of(profile, width=16, item_recon=False, text_recon=False, rec=False)
    spreads = [rows_IE.std(0).mean() for rows_IE in (e_IE, q_IE, learn(alone)[1])]
    assert min(spreads[:2]) > 0.2 and spreads[2] < 0.05, "matching alone makes all alike (section 4.1.1)"
