"""M-Former and its router against loops, and what the gradient reaches.

Shapes: B users, N items, D width of the recommender, K experts, L tokens, W hidden width, H width of the LLM.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from recloom.trainer.systems.laser.mformer import MFormer, MFormerOutput, MFormerSettings
from recloom.trainer.systems.laser.router import Router

D, H = 5, 7
SMALL = {"experts": 3, "tokens": 4, "blocks": 3, "hidden": 12, "heads": 3}


def make_mformer(**changes: Any) -> MFormer:
    torch.manual_seed(0)
    made = MFormer(MFormerSettings(**{**SMALL, **changes}), D, H).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():  # also norms and biases, which start at 1 and 0
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def make_histories(lengths: list[int], side: str = "right", padding: float = 0.0) -> tuple[Tensor, Tensor]:
    """Histories of these lengths and their mask; the real items are the same for either side."""
    drawn, width = torch.Generator().manual_seed(1), max(lengths) + 1
    C_BND = torch.full((len(lengths), width, D), padding, dtype=torch.float64)
    mask_BN = torch.zeros(len(lengths), width, dtype=torch.bool)
    for b, length in enumerate(lengths):
        place = slice(0, length) if side == "right" else slice(width - length, width)
        C_BND[b, place] = torch.randn(length, D, generator=drawn, dtype=torch.float64)
        mask_BN[b, place] = True
    return C_BND, mask_BN


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 5), st.sampled_from(["left", "right"])
)
def test_router_equals_loops(lengths: list[int], experts: int, side: str) -> None:
    C_BND, mask_BN = make_histories(lengths, side, padding=3.0)
    router = Router(D, experts).double()
    found = router(C_BND, mask_BN)
    for b, length in enumerate(lengths):
        score, dispatched = [0.0] * experts, [0.0] * experts
        for item_D in C_BND[b][mask_BN[b]]:
            match_K = [(weight_D @ item_D).item() for weight_D in router.weight_KD]
            total = sum(torch.tensor(match_K).double().exp().tolist())
            p_K = [float(torch.tensor(match).double().exp()) / total for match in match_K]
            score = [one + p / length for one, p in zip(score, p_K, strict=True)]
            dispatched[p_K.index(max(p_K))] += 1 / length
        assert found.scores_BK[b].tolist() == pytest.approx(score, abs=1e-6)
        assert found.dispatched_BK[b].tolist() == pytest.approx(dispatched, abs=1e-6)
        assert int(found.chosen_B[b]) == score.index(max(score))


def test_a_user_without_items_is_refused() -> None:
    C_BND, mask_BN = make_histories([2, 3])
    mask_BN[1] = False
    with pytest.raises(ValueError, match="at least one real item"):
        Router(D, 3).double()(C_BND, mask_BN)


class Plain:
    """M-Former for one user, written out from its weights: head by head and query by query."""

    def __init__(self, mformer: MFormer) -> None:
        self.weights = mformer.state_dict()
        self.settings = mformer.settings

    def linear(self, name: str, rows: Tensor) -> Tensor:
        return rows @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, rows: Tensor) -> Tensor:
        centred = rows - rows.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attend(self, name: str, hidden: Tensor, read: Tensor) -> Tensor:
        query, key, value = (
            self.linear(f"{name}.{part}", rows)
            for part, rows in (("query", hidden), ("key", read), ("value", read))
        )
        width = self.settings.hidden // self.settings.heads
        mixed = torch.zeros_like(query)
        for q in range(len(query)):
            for start in range(0, self.settings.hidden, width):
                head = slice(start, start + width)
                scores = torch.stack([query[q, head] @ key[m, head] for m in range(len(key))])
                shares = (scores / width**0.5).exp()
                mixed[q, head] = (shares / shares.sum()) @ value[:, head]
        return self.linear(f"{name}.out", mixed)

    def prefix(self, C_ND: Tensor) -> Tensor:
        p_NK = torch.stack([(self.weights["router.weight_KD"] @ item_D).exp() for item_D in C_ND])
        score_K = (p_NK / p_NK.sum(1, keepdim=True)).mean(0)
        best = int(score_K.argmax())
        hidden = self.weights["experts_KLW"][best]
        if self.settings.router_gradient == "scaled":
            hidden = hidden * score_K[best]
        for place in range(self.settings.blocks):
            name = f"blocks.{place}"
            normed = self.norm(f"{name}.self_norm", hidden)
            hidden = hidden + self.attend(f"{name}.self_attention", normed, normed)
            if place in (0, 2):
                normed = self.norm(f"{name}.cross_norm", hidden)
                hidden = hidden + self.attend(f"{name}.cross_attention", normed, C_ND)
            inner = self.linear(f"{name}.feed.0", self.norm(f"{name}.feed_norm", hidden))
            inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
            hidden = hidden + self.linear(f"{name}.feed.2", inner)
        return self.linear("projection", self.norm("norm", hidden))


@pytest.mark.parametrize("router_gradient", ["scaled", "none"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_mformer_equals_a_plain_one_and_reads_no_padding(router_gradient: str, side: str) -> None:
    """Blocks 0 and 2 have cross-attention, block 1 has none; padding is not a number here."""
    mformer = make_mformer(router_gradient=router_gradient)
    C_BND, mask_BN = make_histories([1, 4, 2, 3], side, padding=torch.nan)
    output: MFormerOutput = mformer(C_BND, mask_BN)
    plain = Plain(mformer)
    for b in range(4):
        want_LH = plain.prefix(C_BND[b][mask_BN[b]])
        torch.testing.assert_close(output.prefix_BLH[b], want_LH, atol=1e-6, rtol=0)
    assert len(set(output.router.chosen_B.tolist())) > 1, "one expert for all would show little"
    output.prefix_BLH.square().sum().backward()
    for name, parameter in mformer.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize("router_gradient", ["scaled", "none"])
def test_what_the_task_reaches(router_gradient: str) -> None:
    mformer = make_mformer(router_gradient=router_gradient)
    output = mformer(*make_histories([1, 4, 2, 3]))
    output.prefix_BLH.square().sum().backward()
    grads = {name: parameter.grad for name, parameter in mformer.named_parameters()}
    router = grads.pop("router.weight_KD")
    assert (router is not None and float(router.abs().max()) > 1e-6) == (router_gradient == "scaled")
    experts_KLW = grads.pop("experts_KLW")
    used = {k for k in range(3) if experts_KLW is not None and float(experts_KLW[k].abs().max()) > 0}
    assert used == set(output.router.chosen_B.tolist())
    # a key's bias adds the same to all scores of a query, which the softmax takes out
    idle = {name for name, grad in grads.items() if grad is None or float(grad.abs().max()) < 1e-12}
    assert all(name.endswith("key.bias") for name in idle)
    assert not output.router.dispatched_BK.requires_grad and output.router.scores_BK.requires_grad


def test_the_routers_gradient_by_finite_differences() -> None:
    mformer = make_mformer(blocks=1)
    C_BND, mask_BN = make_histories([2, 3])

    def prefix(weight_KD: Tensor) -> Tensor:
        swapped = {"router.weight_KD": weight_KD}
        output: MFormerOutput = torch.func.functional_call(mformer, swapped, (C_BND, mask_BN))
        return output.prefix_BLH

    assert torch.autograd.gradcheck(prefix, mformer.router.weight_KD.detach().clone().requires_grad_())


def test_one_expert_is_no_choice() -> None:
    C_BND, mask_BN = make_histories([2, 3])
    scaled, plain = (
        make_mformer(experts=1, router_gradient=way)(C_BND, mask_BN) for way in ("scaled", "none")
    )
    assert torch.equal(scaled.prefix_BLH, plain.prefix_BLH)
    for part in (scaled.router.scores_BK, scaled.router.dispatched_BK):
        assert torch.equal(part, torch.ones(2, 1).double())


@pytest.mark.parametrize("scale", [0.02, 1.5])
def test_the_prefix_starts_as_large_as_tokens(scale: float) -> None:
    torch.manual_seed(0)
    mformer = MFormer(MFormerSettings(**{**SMALL, "hidden": 96, "tokens": 16}), D, 64).eval()
    mformer.match_scale(scale)
    C_BND, mask_BN = make_histories([1, 4, 2, 3])
    prefix_BLH = mformer(C_BND.float(), mask_BN).prefix_BLH
    assert prefix_BLH.square().mean().sqrt().item() == pytest.approx(scale, rel=0.1)


def test_tokens_and_users_start_apart() -> None:
    """At the paper's depth: a stack that makes all tokens of a prefix alike wastes them."""
    torch.manual_seed(0)
    mformer = MFormer(MFormerSettings(hidden=96, heads=6, experts=1, tokens=8), D, 64).eval()
    C_BND, mask_BN = make_histories([3, 4, 2, 3])
    prefix_BLH = nn.functional.normalize(mformer(C_BND.float(), mask_BN).prefix_BLH, dim=2)
    cosines_BLL = prefix_BLH @ prefix_BLH.mT
    apart_BLL = cosines_BLL[:, ~torch.eye(8, dtype=torch.bool)]
    assert apart_BLL.mean().item() < 0.5
    users_BB = torch.einsum("blh,clh->bc", prefix_BLH, prefix_BLH) / 8
    assert users_BB[~torch.eye(4, dtype=torch.bool)].max().item() < 0.999


def test_dropout_in_training_only() -> None:
    C_BND, mask_BN = make_histories([2, 3])
    mformer = make_mformer(dropout=0.5)
    first, again = (mformer(C_BND, mask_BN).prefix_BLH for _ in range(2))
    assert torch.equal(first, again)
    mformer.train()
    assert not torch.allclose(mformer(C_BND, mask_BN).prefix_BLH, first)


def test_in_bfloat16_the_router_still_counts_in_float32() -> None:
    mformer = make_mformer().bfloat16()
    C_BND, mask_BN = make_histories([2, 3])
    output = mformer(C_BND.float(), mask_BN)
    assert output.prefix_BLH.dtype == torch.bfloat16 and output.router.scores_BK.dtype == torch.float32
    alone = Router(D, 3)
    alone.weight_KD = nn.Parameter(mformer.router.weight_KD.detach().float())
    torch.testing.assert_close(output.router.scores_BK, alone(C_BND.float(), mask_BN).scores_BK)


def test_the_papers_size() -> None:
    """Appendix B; half of the blocks read the history."""
    settings = MFormerSettings()
    assert (settings.experts, settings.tokens, settings.router_gradient) == (8, 32, "scaled")
    with torch.device("meta"):
        mformer = MFormer(settings, 64, 4096)
    reads = [block.cross_attention is not None for block in mformer.blocks]  # type: ignore[union-attr]
    assert reads == [True, False] * 6
    assert mformer.router.weight_KD.shape == (8, 64) and mformer.projection.weight.shape == (4096, 768)
    assert sum(parameter.numel() for parameter in mformer.parameters()) == 96_098_304


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads must divide hidden"),
        ({"experts": 0}, "experts"),
        ({"dropout": 1.0}, "dropout"),
        ({"router_gradient": "x"}, "router_gradient"),
    ],
)
def test_bad_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MFormerSettings(**change)
