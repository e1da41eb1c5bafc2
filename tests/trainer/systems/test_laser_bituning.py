"""Bi-Tuning: packed rows, padded batches and single samples give the same vectors; the LLM stays as it is.

Shapes: S samples, T tokens, N items, D width of the recommender, L prefix tokens, H width of the LLM.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaModel

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from random_llm import random_llm
from ranks import run_ranks

from recloom.data_shards.errors import UserError
from recloom.data_shards.stream import build_row
from recloom.trainer.packed_attention import PACKED
from recloom.trainer.systems.laser.bituning import BiTuning, BiTuningOutput, Pooling
from recloom.trainer.systems.laser.mformer import MFormer, MFormerSettings

VOCABULARY, H, D, EOS = 50, 16, 5, 2
SETTINGS = MFormerSettings(experts=3, tokens=2, blocks=2, hidden=8, heads=2)
KINDS = ("mformer", "free", "none")
CASES = [
    (kind, pool)
    for kind in KINDS
    for pool in get_args(Pooling)
    if (kind, pool)[0] != "none" or pool == "suffix"
]


@cache
def make_llm(attention: str) -> LlamaModel:
    """The same random weights for each attention; shared, because nobody may change it."""
    return random_llm(attention, vocab_size=VOCABULARY, hidden_size=H).double().eval()


def make_bituning(
    attention: str, kind: str, pooling: Pooling, llm: Any = None, num_start: int = 0
) -> BiTuning:
    llm = llm or make_llm(attention)
    torch.manual_seed(1)
    mformer = MFormer(SETTINGS, D, H).double()
    mformer.match_scale(0.3)
    prefix = {"mformer": mformer, "free": 0.3 * torch.randn(3, H).double(), "none": None}[kind]
    mean_H = llm.embed_tokens.weight.mean(0)
    return BiTuning(llm, prefix, pooling, mean_H, EOS, num_start).eval()


def make_samples(lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]


def make_histories(count: int) -> dict[str, Tensor]:
    """Lengths 1, 2, 3, 1, ..."""
    generator = torch.Generator().manual_seed(4)
    real_SN = torch.arange(3) < torch.tensor([1 + s % 3 for s in range(count)])[:, None]
    return {"C_SND": torch.randn(count, 3, D, generator=generator).double(), "real_SN": real_SN}


def as_packed(samples: list[Tensor]) -> dict[str, Any]:
    return {"ids": torch.cat(samples), "boundaries": list(accumulate(map(len, samples), initial=0))}


def as_padded(samples: list[Tensor], side: str) -> dict[str, Any]:
    width = max(map(len, samples)) + 1
    ids_ST = torch.zeros(len(samples), width, dtype=torch.long)
    mask_ST = torch.zeros(len(samples), width, dtype=torch.bool)
    for s, sample_T in enumerate(samples):
        place = slice(0, len(sample_T)) if side == "right" else slice(width - len(sample_T), width)
        ids_ST[s, place], mask_ST[s, place] = sample_T, True
    return {"ids": ids_ST, "mask_ST": mask_ST}


def one_at_a_time(bituning: BiTuning, samples: list[Tensor], histories: dict[str, Tensor]) -> Tensor:
    """Equation 2 by hand: embeddings end to end, one call of the LLM a sample, no mask."""
    table: Any = bituning.llm.get_input_embeddings()  # type: ignore[operator]
    states = []
    for s, sample_T in enumerate(samples):
        parts = [table(sample_T[bituning.num_start :])]
        if bituning.mformer is not None:
            output = bituning.mformer(histories["C_SND"][s : s + 1], histories["real_SN"][s : s + 1])
            parts.insert(0, output.prefix_BLH[0])
        if bituning.prefix_LH is not None:
            parts.insert(0, bituning.prefix_LH)
        parts.insert(0, table(sample_T[: bituning.num_start]))
        if bituning.suffix_H is not None:
            parts.append(bituning.suffix_H[None])
        if bituning.pooling == "eos":
            parts.append(table(torch.tensor([EOS])))
        hidden_TH = bituning.llm(inputs_embeds=torch.cat(parts)[None]).last_hidden_state[0]
        states.append(hidden_TH.mean(0) if bituning.pooling == "mean" else hidden_TH[-1])
    return torch.stack(states)


def trained(bituning: BiTuning) -> dict[str, Tensor]:
    return {name: part for name, part in bituning.named_parameters() if part.requires_grad}


def results(bituning: BiTuning, output: BiTuningOutput | Tensor) -> list[Tensor]:
    """The vectors, then the gradients of all that is trained."""
    states_SH = output.states_SH if isinstance(output, BiTuningOutput) else output
    weights_SH = torch.linspace(-1, 2, states_SH.numel(), dtype=torch.float64).view_as(states_SH)
    parts = list(trained(bituning).values())
    grads = torch.autograd.grad((weights_SH * states_SH).sum(), parts, allow_unused=True)
    return [states_SH, *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize(("kind", "pooling"), CASES)
@settings(max_examples=6)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any), st.integers(0, 2))
def test_packed_padded_and_single_are_the_same(
    kind: str, pooling: Pooling, lengths: list[int], num_start: int
) -> None:
    """A sample may even be empty: then only prefix and suffix are read."""
    samples = make_samples(lengths)
    histories = make_histories(len(samples)) if kind == "mformer" else {}
    bituning = make_bituning("sdpa", kind, pooling, num_start=num_start)
    want = results(bituning, one_at_a_time(bituning, samples, histories))
    packed = make_bituning(PACKED, kind, pooling, num_start=num_start)
    found = [results(packed, packed(**as_packed(samples), **histories))]
    found += [results(bituning, bituning(**as_packed(samples), **histories))]
    found += [
        results(bituning, bituning(**as_padded(samples, side), **histories)) for side in ("left", "right")
    ]
    for got in found:
        assert len(got) == len(want) >= 2
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("kind", "pooling"), CASES)
def test_only_what_surrounds_the_text_is_trained(kind: str, pooling: Pooling) -> None:
    llm = deepcopy(make_llm(PACKED))
    bituning = make_bituning(PACKED, kind, pooling, llm).train()
    before = {name: part.clone() for name, part in bituning.state_dict().items()}
    optimizer = torch.optim.Adam(trained(bituning).values(), lr=0.1)
    samples = make_samples([4, 2, 3])
    histories = make_histories(3) if kind == "mformer" else {}
    for _ in range(2):
        output = bituning(**as_packed(samples), **histories)
        (output.states_SH.square().sum() + output.states_SH[:, 0].sum()).backward()
        optimizer.step()
    assert all(part.grad is None and not part.requires_grad for part in llm.parameters())
    after = bituning.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith("llm.")}
    assert frozen <= same and ("suffix_H" in after) == (pooling == "suffix")
    # experts that nobody was sent to may stay, and keys' biases have no gradient
    assert all(name.endswith("key.bias") for name in same - frozen)
    assert set(after) == {*trained(bituning), *frozen}


def test_the_count_of_table_3() -> None:
    """Prefix and suffix alone: (L + 1) H, 0.135 million in the paper."""
    parts = trained(make_bituning("sdpa", "free", "suffix"))
    assert sum(part.numel() for part in parts.values()) == (3 + 1) * H and (32 + 1) * 4096 == 135_168


def test_the_suffix_starts_at_the_mean_and_is_a_copy() -> None:
    llm = make_llm("sdpa")
    mean_H = llm.embed_tokens.weight.mean(0)
    bituning = BiTuning(llm, None, suffix_H=mean_H)
    assert torch.equal(bituning.suffix_H, mean_H)
    with torch.no_grad():
        bituning.suffix_H += 1
    assert not torch.equal(bituning.suffix_H, mean_H)


def test_the_router_comes_along() -> None:
    samples = make_samples([4, 2])
    bituning, histories = make_bituning(PACKED, "mformer", "suffix"), make_histories(2)
    output = bituning(**as_packed(samples), **histories)
    assert bituning.mformer is not None and output.router is not None
    want = bituning.mformer.router(histories["C_SND"], histories["real_SN"])
    torch.testing.assert_close(output.router.scores_BK, want.scores_BK)
    assert make_bituning(PACKED, "free", "suffix")(**as_packed(samples)).router is None


def test_a_row_of_padding_reaches_the_same_parameters() -> None:
    """Every rank must pass gradients through the same parameters, also where its row is empty."""
    row = build_row(SimpleNamespace(has_slots=False), [])  # type: ignore[arg-type]
    bituning = make_bituning(PACKED, "mformer", "suffix")
    output = bituning(row.ids_T, row.boundaries.tolist(), **make_histories(1))
    assert output.router is not None
    (0 * (output.states_SH.sum() + output.router.scores_BK.sum())).backward()
    assert output.states_SH.shape == (1, H)
    assert all(part.grad is not None and not part.grad.any() for part in trained(bituning).values())


def test_a_bfloat16_llm_with_float32_parts() -> None:
    samples, histories = make_samples([5, 3]), make_histories(2)
    llm = deepcopy(make_llm(PACKED)).bfloat16()
    bituning = make_bituning(PACKED, "mformer", "suffix", llm)
    assert bituning.mformer is not None
    bituning.mformer.float()
    assert bituning.suffix_H is not None
    bituning.suffix_H.data = bituning.suffix_H.data.float()
    output = bituning(**as_packed(samples), **histories)
    output.states_SH.float().sum().backward()
    assert output.states_SH.dtype == torch.bfloat16 and bituning.suffix_H.grad is not None
    exact_SH = make_bituning(PACKED, "mformer", "suffix")(**as_packed(samples), **histories).states_SH
    cosines_S = torch.cosine_similarity(output.states_SH.double(), exact_SH, dim=1)
    assert cosines_S.min().item() > 0.99


def test_what_does_not_fit_is_refused() -> None:
    llm, samples = make_llm(PACKED), make_samples([4, 2])
    for parts, message in (
        ({"prefix": None, "pooling": "mean"}, "nothing is left to train"),
        ({"prefix": None, "pooling": "eos", "eos": EOS}, "nothing is left to train"),
        ({"prefix": torch.zeros(2, H), "pooling": "eos"}, "pass its id"),
        ({"prefix": None}, "pass it as suffix_H"),
    ):
        with pytest.raises(UserError, match=message):
            BiTuning(llm, **parts)  # type: ignore[arg-type]
    free, mformer = (make_bituning(PACKED, kind, "suffix") for kind in ("free", "mformer"))
    with pytest.raises(UserError, match="model.attention = packed"):
        free(**as_padded(samples, "left"))
    with pytest.raises(ValueError, match="one of boundaries"):
        free(samples[0])
    with pytest.raises(ValueError, match="needs C_SND"):
        mformer(**as_packed(samples))
    with pytest.raises(ValueError, match="prefix"):
        mformer(**as_packed(samples), **make_histories(3))


def test_zero3_on_two_ranks_equals_one_process() -> None:
    run_ranks(Path(__file__).parent / "laser_ranks.py", 2)
