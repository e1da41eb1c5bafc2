"""The loss of packed rows, against one that reads every text by itself under a dense mask.

Shapes: T tokens of a text, H, V words.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from blank_networks import (
    ABLATIONS,
    IDS,
    RATE,
    WORDS,
    all_logits,
    random_masked,
    row_of,
    small_network,
)

from recloom.data_shards.blank_rows import EMPTY
from recloom.data_shards.masking import Masked, attention_mask
from recloom.data_shards.stream import IGNORE, StepBatch
from recloom.trainer.parallel_layout import RankLayout
from recloom.trainer.systems.recsysllm.network import BlankInfiller
from recloom.trainer.systems.recsysllm.objective import BlankLoss

LOSS = BlankLoss(torch.device("cpu"))


def embedded(network: BlankInfiller, masked: Masked) -> Tensor:
    """Token by token, (T, H)."""
    words = network.llm.get_input_embeddings().weight
    rows = []
    for id, intra in zip(masked.ids_T.tolist(), masked.intra_T.tolist(), strict=True):
        word = words[id] if id < WORDS else RATE * network.marks.weight[id - WORDS]
        rows.append(word + RATE * network.intra.weight[intra])
    return torch.stack(rows)


def slow_loss(network: BlankInfiller, masked: Masked) -> Tensor:
    """Cross-entropy of one text: part B's targets among the words and [END]. The attention is PyTorch's."""
    num_tokens = len(masked.ids_T)
    hidden_TH = network.llm.model(
        inputs_embeds=embedded(network, masked)[None],
        position_ids=torch.from_numpy(masked.inter_T)[None],
        attention_mask=attention_mask(masked.num_a, num_tokens)[None, None],
    ).last_hidden_state[0]
    end_H = RATE * network.marks.weight[IDS.end - WORDS]
    scores = torch.cat([network.llm.lm_head(hidden_TH), (hidden_TH @ end_H)[:, None]], dim=1)
    logp = scores.log_softmax(1)
    targets = [WORDS if id == IDS.end else id for id in masked.targets_T[masked.num_a :].tolist()]
    return -logp[torch.arange(masked.num_a, num_tokens), torch.tensor(targets)].sum()


def named_gradients(network: BlankInfiller) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mask", ABLATIONS, ids=lambda mask: f"{mask.units}-{mask.order}-{mask.positions}")
def test_a_packed_row_has_the_loss_of_its_texts(mask: Any) -> None:
    """And their gradients, the tables' included."""
    rng = np.random.default_rng(3)
    texts = [random_masked(rng, 3 + 4 * n, mask) for n in range(4)]
    network, slow = small_network(), small_network("sdpa")
    found = LOSS.loss(network, row_of(texts))
    wanted = torch.stack([slow_loss(slow, text) for text in texts]).sum()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    found.backward()
    wanted.backward()
    own, other = named_gradients(network), named_gradients(slow)
    assert set(own) == set(other)
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-4)


def test_only_part_b_is_learned() -> None:
    """The loss changes with part B's targets and with nothing that stands for part A's."""
    masked = random_masked(np.random.default_rng(0), 14)
    assert (masked.targets_T[: masked.num_a] == IGNORE).all()
    network = small_network()
    logits_TV = all_logits(network, row_of([masked]))
    part_b = -logits_TV.log_softmax(1)[masked.num_a :].gather(
        1, torch.from_numpy(masked.targets_T[masked.num_a :, None])
    )
    torch.testing.assert_close(LOSS.loss(network, row_of([masked])), part_b.sum())
    assert int((row_of([masked]).labels_T != IGNORE).sum()) == len(masked.ids_T) - masked.num_a


def test_an_empty_row_is_zero_with_a_way_for_gradients() -> None:
    network = small_network()
    loss = LOSS.loss(network, row_of([EMPTY]))
    assert loss.item() == 0 and loss.requires_grad
    loss.backward()
    found = named_gradients(network)
    assert set(found) == {name for name, _ in network.named_parameters()}, "no rank waits for another's"
    assert all((gradient == 0).all() for gradient in found.values())


def test_units_are_the_targets_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    texts = [random_masked(rng) for _ in range(3)]
    own = sum(int((text.targets_T != IGNORE).sum()) for text in texts)

    def add_another_rank(total: Tensor) -> None:
        total += 7

    monkeypatch.setattr(dist, "all_reduce", add_another_rank)
    batch = StepBatch(0, 0, [row_of(texts[:2]), row_of([EMPTY]), row_of(texts[2:])], 999, [])
    assert BlankLoss(torch.device("cpu"), RankLayout(0, 2)).units(batch) == own + 7
    assert LOSS.told() == {}


def test_many_targets_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same loss and gradients, whatever part of the logits exists at a time."""
    row = row_of([random_masked(np.random.default_rng(seed), 9) for seed in range(4)])
    found = []
    for at_once in (10**9, 1):
        monkeypatch.setattr("recloom.trainer.vocabulary_loss.AT_ONCE", at_once)
        network = small_network()
        calls: list[None] = []
        network.llm.lm_head.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        loss = LOSS.loss(network, row)
        loss.backward()
        found.append((loss.item(), named_gradients(network)))
        assert len(calls) == 1  # under ZeRO-3 a rank that calls a module oftener than another hangs or dies
    (whole, gradients), (parts, others) = found
    assert parts == pytest.approx(whole, rel=1e-6)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-5)
