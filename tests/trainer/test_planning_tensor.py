"""What tensor parallelism, offloading and ZeRO++ change in a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import read_config
from recloom.trainer.plan import Plan, make_plan
from recloom.trainer.planning.cluster import make_cluster
from recloom.trainer.planning.memory import Setup, SmallParts, host_bytes, training_memory
from recloom.trainer.planning.model_size import KNOWN

LLAMA_7B, OPT, GLM = (
    KNOWN[name] for name in ("meta-llama/Llama-2-7b-hf", "facebook/opt-6.7b", "zai-org/glm-4-9b-hf")
)
SETUP = Setup(LLAMA_7B, "bfloat16", 3, 16, 2048, 500, 1000, checkpointing=True, offload=False)


@pytest.fixture(scope="module")
def config(repo_root: Path) -> RunConfig:
    return read_config(repo_root / "configs/llama4rec_7b.yaml", [])


def with_tensor(config: RunConfig, tensor: int) -> RunConfig:
    return config.model_copy(
        update={"parallel": config.parallel.model_copy(update={"tensor": tensor, "zero_stage": 3})}
    )


def texts(plan: Plan, name: str) -> list[tuple[str, str]]:
    return [(check.status, check.text) for check in plan.checks if check.name.startswith(name)]


def test_what_a_rank_holds_is_the_same_share_of_the_model() -> None:
    """All ranks together hold weights, gradients and optimizer once, whatever way they are divided."""
    one, two = training_memory(SETUP), training_memory(replace(SETUP, tensor=2))
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(two, name) == pytest.approx(getattr(one, name), rel=1e-6)
    zero = replace(SETUP, zero_stage=0)
    assert training_memory(replace(zero, tensor=4)).optimizer == training_memory(zero).optimizer / 4


def test_logits_and_gathered_weights_are_divided() -> None:
    one, four = training_memory(SETUP), training_memory(replace(SETUP, tensor=4))
    assert four.logits == one.logits / 4
    assert one.gathered == 2 * (1e9 + LLAMA_7B.largest_parameter)
    assert four.gathered == 2 * (1e9 + LLAMA_7B.largest_parameter // 4)
    assert one.start == 0 and four.start == 2 * (LLAMA_7B.parameters // 4)


@pytest.mark.parametrize("model", [LLAMA_7B, OPT, GLM])
@pytest.mark.parametrize("frozen", [True, False])
def test_activations_keep_what_norms_read_whole(model: object, frozen: bool) -> None:
    """Korthikanti et al. 2022, section 4.2: from 34 h to (10 + 24 / t) h without sequence parallelism."""
    assert isinstance(model, type(LLAMA_7B))
    one, two, many = (model.layer_activations(2, frozen, tensor) for tensor in (1, 2, 10**9))
    assert two == pytest.approx((one + many) / 2, abs=1)
    assert 4 * model.hidden <= many < one / 2


def test_activations_without_a_frozen_model_are_those_of_the_paper_for_opt() -> None:
    """Its 4 h of the MLP is OPT's: 10 h whole of 34 h; without the 10 h of dropout masks and float32 inputs
    of norms that transformers' OPT does not keep, 8 h of 26 h or so."""
    whole = OPT.layer_activations(2, False, 10**9)
    assert whole == 2 * (4 * OPT.hidden + 4)
    assert OPT.layer_activations(2, False) == 2 * (13 * OPT.hidden + 4) + 4 * OPT.heads


def test_what_is_trained_beside_a_frozen_model_stays_whole() -> None:
    small = replace(SETUP, small=SmallParts(10_000_000, 1_000_000), zero_stage=1)
    one, two = training_memory(small), training_memory(replace(small, tensor=2))
    assert two.gradients == one.gradients == 2 * 10_000_000
    assert two.optimizer == 2 * one.optimizer  # eight data-parallel ranks divide it, not sixteen
    assert two.weights == pytest.approx(one.weights / 2, rel=0.01)


def test_offloaded_parameters_hpz_and_a_second_bucket() -> None:
    plain = training_memory(SETUP)
    off = replace(SETUP, offload_parameters=True)
    assert training_memory(off).weights == 0
    assert host_bytes(off, 8) == pytest.approx(1.5 * 2 * LLAMA_7B.parameters / 16 * 8)
    hpz = training_memory(replace(SETUP, hpz_size=8))
    assert hpz.weights == pytest.approx(plain.weights + 2 * LLAMA_7B.parameters / 8)
    assert training_memory(replace(SETUP, buckets=2)).bucket == 2 * plain.bucket


def test_a_plan_with_tensor_parallelism(config: RunConfig) -> None:
    plan = make_plan(with_tensor(config, 4), 16, 80)
    assert plan.ok
    assert texts(plan, "tensor parallel") == [("ok", "4 data-parallel groups of 4 ranks")]
    ((_, text),) = texts(plan, "batch")
    assert text.endswith("on each of 4 groups of 4 ranks")
    assert texts(make_plan(config, 16, 80), "tensor parallel") == []


def test_heads_and_ranks_that_cannot_be_divided(config: RunConfig) -> None:
    ((status, text),) = texts(make_plan(with_tensor(config, 3), 12, 80), "tensor parallel")
    assert status == "FAIL" and "32 key-value heads can't be shared evenly, set it to a divisor of 32" in text
    ((status, text),) = texts(make_plan(with_tensor(config, 8), 12, 80), "tensor parallel")
    assert status == "FAIL" and "12 ranks can't form groups of 8" in text


def test_a_group_that_reaches_over_nodes(config: RunConfig) -> None:
    ((status, text),) = texts(make_plan(with_tensor(config, 8), 16, 80, gpus_per_node=4), "tensor parallel")
    assert status == "note" and "a group reaches over nodes of 4 ranks" in text


def test_the_cpu_ranks_of_a_machine(config: RunConfig) -> None:
    assert make_cluster(with_tensor(config, 2), 0, 16, 8).ranks == config.parallel.cpu_ranks
