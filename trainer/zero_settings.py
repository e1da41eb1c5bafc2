"""What `parallel` says of ZeRO, as DeepSpeed's settings, and the rules that no config alone can check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recloom.data_shards.errors import UserError
from recloom.trainer.config import ParallelBlock
from recloom.trainer.parallel_layout import PIECE

# Elements. Without a GPU a gradient is reduced from where it was just written, in memory that the allocator
# keeps: DeepSpeed's own gigabyte is fresh pages in every step, a tenth of its time. For the same reason the
# optimizer casts gradients piece by piece (the allocator keeps up to 32 MiB). Weights are fetched ahead in
# buckets, so that the first layer does not wait for all.
CPU_BUCKET = 2**23
CPU_PIECE = 2**22


def zero_json(parallel: ParallelBlock, has_gpus: bool) -> dict[str, Any]:
    """DeepSpeed's `zero_optimization`."""
    zero: dict[str, Any] = {"stage": parallel.zero_stage}
    if parallel.zero_stage > 0 and not has_gpus:
        zero["reduce_bucket_size"] = CPU_BUCKET
    if parallel.zero_stage == 3 and not has_gpus and not parallel.offload_optimizer:
        zero |= {"sub_group_size": CPU_PIECE, "stage3_prefetch_bucket_size": CPU_BUCKET}
    if parallel.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if parallel.offload_optimizer:
        zero["offload_optimizer"] = offload_target(parallel)
    if parallel.offload_parameters:
        zero["offload_param"] = offload_target(parallel)
    if parallel.overlap_communication is not None:
        zero["overlap_comm"] = parallel.overlap_communication
    if parallel.hpz_size > 1:
        zero["zero_hpz_partition_size"] = parallel.hpz_size
    if parallel.quantized_weights:
        zero["zero_quantized_weights"] = True
    if parallel.quantized_gradients:
        zero["zero_quantized_gradients"] = True
    return zero


def piece_of(ds_config: dict[str, Any]) -> int:
    """Weights that ZeRO-3 updates at a time."""
    return int(ds_config["zero_optimization"].get("sub_group_size", PIECE))


def offload_target(parallel: ParallelBlock) -> dict[str, Any]:
    if parallel.offload_folder is None:
        return {"device": "cpu", "pin_memory": True}
    return {"device": "nvme", "nvme_path": parallel.offload_folder, "pin_memory": True}


def check_machine(parallel: ParallelBlock, ranks: int, has_gpus: bool) -> None:
    """Raises UserError for what these ranks or this machine can't do."""
    if ranks % parallel.hpz_size:
        raise UserError(
            f"parallel.hpz_size = {parallel.hpz_size}: {ranks} ranks can't form groups of "
            f"{parallel.hpz_size}, set it to a divisor of {ranks}, best the ranks of a node."
        )
    for name in ("quantized_weights", "quantized_gradients"):
        if getattr(parallel, name) and not has_gpus:
            raise UserError(
                f"parallel.{name} = True: ZeRO++ quantizes on GPUs only and this machine has none, "
                "set it to false."
            )
    folder = parallel.offload_folder
    if folder is not None and not Path(folder).is_dir():
        raise UserError(
            f"parallel.offload_folder = '{folder}': no such folder on this machine, make it on every node's "
            "own disk, or leave it out."
        )
