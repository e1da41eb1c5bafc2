"""What `parallel` may say of ZeRO: the rules, and what DeepSpeed is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_config import problems, with_settings

from recloom.data_shards.errors import UserError
from recloom.trainer.config import ParallelBlock
from recloom.trainer.config_io import read_config
from recloom.trainer.engine import check_async_io
from recloom.trainer.zero_settings import CPU_BUCKET, CPU_PIECE, check_machine, zero_json

ALL = {
    "offload_parameters": True,
    "offload_folder": "/nvme",
    "hpz_size": 2,
    "quantized_weights": True,
    "quantized_gradients": True,
}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "offload_parameters",
            "parallel.offload_parameters = True: needs ZeRO-3, but parallel.zero_stage = 2",
        ),
        ("offload_folder", "parallel.offload_folder = '/nvme': needs ZeRO-3"),
        ("hpz_size", "parallel.hpz_size = 2: needs ZeRO-3"),
        ("quantized_weights", "parallel.quantized_weights = True: needs ZeRO-3"),
        ("quantized_gradients", "parallel.quantized_gradients = True: needs ZeRO-3"),
    ],
)
def test_what_only_zero_3_does(tmp_path: Path, name: str, said: str) -> None:
    """DeepSpeed would leave these out in silence."""
    block: dict[str, Any] = {"zero_stage": 2, name: ALL[name], "offload_optimizer": True}
    (text,) = problems(with_settings(tmp_path, parallel=block))
    assert text.startswith(said) and text.endswith("set it to 3.")
    read_config(with_settings(tmp_path, parallel={**block, "zero_stage": 3}), [])


def test_a_folder_for_nothing(tmp_path: Path) -> None:
    (text,) = problems(with_settings(tmp_path, parallel={"offload_folder": "/nvme"}))
    assert text.startswith("parallel.offload_folder = '/nvme': nothing is offloaded there")


@pytest.mark.parametrize(("name", "value"), [("hpz_size", 2), ("quantized_gradients", True)])
def test_groups_that_would_mix_parts_of_layers(tmp_path: Path, name: str, value: object) -> None:
    (text,) = problems(with_settings(tmp_path, parallel={"tensor": 2, name: value}))
    assert text.startswith(f"parallel.{name} = {value}: its groups of ranks cross those of parallel.tensor")


@pytest.mark.parametrize("value", [0, -1, 1.5, "two"])
def test_tensor_is_a_number_of_ranks(tmp_path: Path, value: object) -> None:
    (text,) = problems(with_settings(tmp_path, parallel={"tensor": value}))
    assert text.startswith("parallel.tensor = ")


def test_what_deepspeed_is_told() -> None:
    plain = zero_json(ParallelBlock(), True)
    assert plain == {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    small = {name: CPU_BUCKET for name in ("reduce_bucket_size", "stage3_prefetch_bucket_size")}
    assert zero_json(ParallelBlock(), False) == {**plain, **small, "sub_group_size": CPU_PIECE}
    offloaded = zero_json(ParallelBlock(offload_optimizer=True), False)
    assert "sub_group_size" not in offloaded, "what is written in pieces of a disk's size stays so"
    assert zero_json(ParallelBlock(zero_stage=1), True) == {"stage": 1}
    assert zero_json(ParallelBlock(zero_stage=0), False) == {"stage": 0}
    assert zero_json(ParallelBlock(zero_stage=2, overlap_communication=True), True)["overlap_comm"] is True
    told = zero_json(ParallelBlock(**ALL, offload_optimizer=True), True)
    assert told["offload_param"] == {"device": "nvme", "nvme_path": "/nvme", "pin_memory": True}
    assert told["offload_optimizer"] == told["offload_param"]
    assert told["zero_hpz_partition_size"] == 2
    assert told["zero_quantized_weights"] and told["zero_quantized_gradients"]
    assert zero_json(ParallelBlock(offload_parameters=True), True)["offload_param"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("parallel", "said"),
    [
        ({"hpz_size": 4}, "parallel.hpz_size = 4: 6 ranks can't form groups of 4, set it to a divisor of 6"),
        ({"quantized_weights": True}, "parallel.quantized_weights = True: .* GPUs only .* set it to false"),
        ({"quantized_gradients": True}, "parallel.quantized_gradients = True: .* set it to false"),
        ({"offload_folder": "/no/such/folder"}, "offload_folder = '/no/such/folder': no such folder"),
    ],
)
def test_what_a_machine_cannot_do(parallel: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_machine(ParallelBlock(**parallel), 6, has_gpus=False)


@pytest.mark.parametrize("is_there", [True, False])
def test_asynchronous_io_is_there(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: is_there)
    check_async_io(ParallelBlock())
    parallel = ParallelBlock(offload_folder="/nvme", offload_optimizer=True)
    if is_there:
        check_async_io(parallel)
        return
    with pytest.raises(UserError, match="offload_folder = '/nvme': .* install libaio"):
        check_async_io(parallel)


def test_what_a_machine_can_do(tmp_path: Path) -> None:
    check_machine(ParallelBlock(hpz_size=3, offload_folder=str(tmp_path)), 6, has_gpus=False)
    check_machine(ParallelBlock(quantized_weights=True, quantized_gradients=True), 6, has_gpus=True)
