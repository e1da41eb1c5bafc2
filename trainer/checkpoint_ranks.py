"""What all ranks do together around a checkpoint: seal it, agree on one, wait for one that is converted.

Every function here is called by all ranks.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from recloom.data_shards.errors import UserError
from recloom.trainer.agreement import first_decides, first_of_any
from recloom.trainer.checkpoints import (
    Saved,
    complete,
    fault_in_share,
    flushed_share,
    in_force,
    refusal,
    share_fault,
)
from recloom.trainer.parallel_layout import RankLayout
from recloom.trainer.universal import is_converted, start_conversion, universal_path

HEARTBEAT_SECONDS = 0.5  # of ranks that wait for rank 0, so that no collective runs into its timeout


def make_room(path: Path, layout: RankLayout) -> None:
    """Remove what a start that was cut off left: torn files of more ranks would be taken for ours."""
    if layout.rank == 0:
        shutil.rmtree(path, ignore_errors=True)
    dist.barrier()


def seal(folder: Path, step: int, layout: RankLayout, keep: int) -> None:
    """Flush and hash the files of all ranks, then let rank 0 write the manifest and `latest.json`."""
    dist.barrier()
    shares: list[Any] = [None] * layout.world_size
    dist.all_gather_object(shares, flushed_share(folder / f"step_{step}", layout.rank, layout.world_size))
    if layout.rank == 0:
        files = {name: entry for share in shares for name, entry in share.items()}
        complete(folder, step, layout, files, keep)
    dist.barrier()


def agreed(folder: Path, layout: RankLayout) -> Saved | None:
    """The checkpoint in force, read through by all ranks; None where there is none.

    Raises UserError, which names the newest good one, when it is damaged.
    """
    saved = first_decides(lambda: in_force(folder))
    if saved is None:
        return None
    fault = first_of_any(fault_in_share(saved, layout.rank, layout.world_size))
    if fault is not None:
        raise UserError(first_decides(lambda: str(refusal(saved, fault))))
    return saved


def convert(saved: Saved, layout: RankLayout) -> None:
    """Have rank 0 make the universal form where it is not there yet."""
    made = first_decides(lambda: is_converted(saved))
    if made and not first_of_any(share_fault(universal_path(saved), layout.rank, layout.world_size)):
        return
    if layout.rank == 0:
        pieces = "" if saved.piece == layout.piece else f" in pieces of {layout.piece:,} weights"
        print(f"{saved.path}: written by {saved.ranks}, converted for {layout.ranks}{pieces}", flush=True)
    running = start_conversion(saved) if layout.rank == 0 else None
    while not first_decides(lambda: running is None or running.wait(HEARTBEAT_SECONDS)):
        continue


def check_convertible(saved: Saved, zero: dict[str, Any]) -> None:
    """Raises UserError for what DeepSpeed's converter does not know. zero: its `zero_optimization`."""
    remedy = f"start {saved.ranks}, or delete {saved.folder} to start anew."
    if zero["stage"] == 0:
        raise UserError(
            f"{saved.path}: written by {saved.ranks} without ZeRO (parallel.zero_stage = 0), it can't be "
            f"converted for another parallel.tensor: {remedy}"
        )
    if zero.get("offload_optimizer", {}).get("device") == "nvme":
        raise UserError(
            f"{saved.path}: with parallel.offload_folder the optimizer's state lies in files of each rank, "
            f"which can't be converted for other ranks: {remedy}"
        )
