"""Which parameters a method trains, and that they are saved and loaded bit by bit.

Shapes: D width of the recommender, H width of the LLM.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import LlamaModel

sys.path.insert(0, str(Path(__file__).parent))

from random_llm import random_llm

from recloom.data_shards.artifacts import write_manifest
from recloom.data_shards.errors import UserError
from recloom.trainer.systems.laser.bituning import BiTuning
from recloom.trainer.systems.laser.methods import METHODS, asked_methods, stage_numbers, trained_methods
from recloom.trainer.systems.laser.mformer import MFormerSettings
from recloom.trainer.systems.laser.network import (
    WEIGHTS,
    load_weights,
    make_network,
    read_weights,
    save_weights,
)
from recloom.trainer.systems.laser.settings import BiTuneBlock, MethodName

H, D, EOS, SCALE = 16, 5, 2, 0.4
SETTINGS = MFormerSettings(experts=4, tokens=3, blocks=2, hidden=8, heads=2)
TRAINED: dict[MethodName, set[str]] = {
    "laser": {"mformer", "suffix_H"},
    "no_moe": {"mformer", "suffix_H"},
    "no_mformer": {"prefix_LH", "suffix_H"},
    "no_prefix": {"suffix_H"},
    "no_stage_1": {"mformer", "suffix_H"},
    "no_stage_2": {"mformer", "suffix_H"},
    "average": {"mformer"},
    "hard_eos": {"mformer"},
}


def make_llm() -> LlamaModel:
    return random_llm("sdpa", hidden_size=H)


def built(name: MethodName, seed: int = 1, width: int = D, **changes: Any) -> BiTuning:
    llm = make_llm()
    torch.manual_seed(seed)
    settings = BiTuneBlock(mformer=SETTINGS.model_copy(update=changes), prefix_scale=0.5)
    mean_H = llm.embed_tokens.weight.detach().mean(0)
    return make_network(llm, METHODS[name], settings, width, SCALE, mean_H, EOS)


def trained(network: BiTuning) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}


def test_every_method_is_known_under_its_own_name() -> None:
    assert set(METHODS) == set(get_args(MethodName)) == set(TRAINED)
    assert all(method.key == key for key, method in METHODS.items())
    assert len({method.name for method in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize("name", TRAINED)
def test_trained_parameters(name: MethodName) -> None:
    network = built(name)
    assert {key.partition(".")[0] for key in trained(network)} == TRAINED[name]
    frozen = {key for key, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {f"llm.{key}" for key, _ in make_llm().named_parameters()}
    assert network.pooling == METHODS[name].pooling


@pytest.mark.parametrize("name", TRAINED)
def test_experts(name: MethodName) -> None:
    """One without MoE, which has no choice to make; those of the config otherwise."""
    mformer = built(name).mformer
    if METHODS[name].prefix != "mformer":
        assert mformer is None
        return
    assert mformer is not None
    experts = 1 if name == "no_moe" else 4
    assert mformer.settings.experts == experts and mformer.experts_KLW.shape == (experts, 3, 8)
    assert mformer.router.weight_KD.shape == (experts, D)
    output = mformer(torch.randn(6, 2, D), torch.ones(6, 2, dtype=torch.bool))
    assert output.prefix_BLH.shape == (6, 3, H)
    assert set(output.router.chosen_B.tolist()) <= set(range(experts))


@pytest.mark.parametrize("name", ["laser", "no_mformer"])
def test_the_prefix_starts_as_large_as_asked(name: MethodName) -> None:
    """In root mean squares of the LLM's tokens; the suffix at their mean."""
    network = built(name, tokens=200)
    if name == "laser":
        assert network.mformer is not None
        real_B1 = torch.ones(20, 1, dtype=torch.bool)
        prefix = network.mformer.eval()(torch.randn(20, 1, D), real_B1).prefix_BLH.detach()
    else:
        assert network.prefix_LH is not None
        prefix = network.prefix_LH.detach()
    assert prefix.square().mean().sqrt().item() == pytest.approx(0.5 * SCALE, rel=0.1)
    mean_H = make_llm().embed_tokens.weight.mean(0)
    assert network.suffix_H is not None and torch.equal(network.suffix_H, mean_H)


@pytest.mark.parametrize("name", TRAINED)
def test_saved_weights_load_bit_by_bit(name: MethodName, tmp_path: Path) -> None:
    one, other = built(name, 1), built(name, 2)
    save_weights(trained(one), tmp_path)
    write_manifest(tmp_path)
    weights = read_weights(tmp_path)
    assert set(weights) == set(trained(one)), "nothing of the LLM"
    load_weights(other, weights, tmp_path)
    for key, value in trained(one).items():
        assert torch.equal(trained(other)[key], value), key
    if name not in ("no_prefix",):
        fresh = trained(built(name, 2))
        assert any(not torch.equal(value, fresh[key]) for key, value in trained(one).items())
    size = sum(value.numel() * value.element_size() for value in trained(one).values())
    assert (tmp_path / WEIGHTS).stat().st_size < size + 10_000


def test_bfloat16_weights_load_into_fresh_float32_ones(tmp_path: Path) -> None:
    """A training in bfloat16 goes on in stage 2 from a network made in float32."""
    one, other = built("laser", 1).to(torch.bfloat16), built("laser", 2)
    save_weights(trained(one), tmp_path)
    write_manifest(tmp_path)
    load_weights(other, read_weights(tmp_path), tmp_path)
    assert all(torch.equal(trained(other)[key], value.float()) for key, value in trained(one).items())


@pytest.mark.parametrize(
    ("source", "change", "told"),
    [
        (
            "laser",
            {"tokens": 2},
            "its mformer.experts_KLW is (4, 2, 8), this network's is (4, 3, 8)",
        ),
        (
            "no_moe",
            {},
            "its mformer.experts_KLW is (1, 3, 8), this network's is (4, 3, 8)",
        ),
        (
            "laser",
            {"width": 7},
            "is (8, 7), this network's is (8, 5)",
        ),
        ("no_prefix", {}, "is not there, this network's is"),
        ("no_mformer", {}, "is not there, this network's is"),
        ("average", {}, "its suffix_H is not there, this network's is (16,)"),
    ],
)
def test_weights_that_do_not_fit_are_one_sentence(
    source: MethodName, change: dict[str, Any], told: str
) -> None:
    network, before = built("laser"), trained(built("laser"))
    with pytest.raises(UserError) as caught:
        load_weights(network, trained(built(source, **change)), Path("runs/other"))
    text = str(caught.value)
    assert text.startswith("runs/other: its ") and told in text and text.endswith(".") and "\n" not in text
    assert all(torch.equal(before[key], value) for key, value in trained(network).items()), "left as it was"


def test_weights_that_have_too_much_are_refused_too() -> None:
    with pytest.raises(UserError, match=r"its mformer\..* this network's is not there"):
        load_weights(built("no_prefix"), trained(built("laser")), Path("x"))


@pytest.mark.parametrize("damage", ["flip", "incomplete"])
def test_damaged_weights_are_one_sentence(damage: str, tmp_path: Path) -> None:
    save_weights(trained(built("no_prefix")), tmp_path)
    if damage == "flip":
        write_manifest(tmp_path)
        data = bytearray((tmp_path / WEIGHTS).read_bytes())
        data[-1] ^= 1
        (tmp_path / WEIGHTS).write_bytes(data)
    with pytest.raises(UserError, match="checksum differs|folder is incomplete"):
        read_weights(tmp_path)


@pytest.mark.parametrize("pooling", ["eos", "mean"])
def test_nothing_to_train_is_refused(pooling: Any) -> None:
    with pytest.raises(UserError, match=f"^pooling = {pooling}: without a prefix nothing is left to train"):
        BiTuning(make_llm(), None, pooling, None, EOS)


def test_a_gradient_reaches_all_that_is_trained_and_nothing_else() -> None:
    network = built("laser")
    ids, C_SND = torch.randint(3, 50, (1, 6)), torch.randn(1, 2, D)
    output = network(ids, None, torch.ones(1, 6), C_SND, torch.ones(1, 2, dtype=torch.bool))
    output.states_SH.square().sum().backward()
    assert all(p.grad is None for p in network.llm.parameters())
    touched = {key for key, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    # a softmax over keys does not change with a bias of all keys
    assert touched >= {key for key in trained(network) if not key.endswith("key.bias")}


def test_stages_of_methods() -> None:
    class Config:
        """What the functions read."""

        methods = tuple(METHODS)

        class stage_2:  # noqa: N801
            epochs = 5

    config: Any = Config
    assert [method.key for method in asked_methods(config)] == list(METHODS)
    assert {m.key for m in asked_methods(config)} - {m.key for m in trained_methods(config)} == {"no_stage_2"}
    numbers = {method.key: stage_numbers(config, method) for method in METHODS.values()}
    assert numbers["no_stage_2"] == (1,) and numbers["no_stage_1"] == (1, 2) == numbers["laser"]
    Config.stage_2.epochs = 0
    assert {stage_numbers(config, method) for method in METHODS.values()} == {(1,)}
