"""Run by test_local_sockets.py on every rank: write the addresses that this process listens on.

usage: listening_ranks.py [--local_rank=N] FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from recloom.launcher.cluster.rendezvous import open_rendezvous
from recloom.trainer.config import ParallelBlock
from recloom.trainer.engine import start_ranks


def main(folder: Path) -> None:
    store = open_rendezvous(int(os.environ["WORLD_SIZE"]))
    rank, world_size = start_ranks(ParallelBlock())
    total = torch.ones(1)
    dist.all_reduce(total)  # gloo connects at the first
    assert total.item() == world_size
    sockets = psutil.Process().net_connections("inet")
    found = sorted({one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN})
    (folder / f"{rank}.json").write_text(json.dumps({"listens": found, "has_store": store is not None}))
    dist.barrier()
    os._exit(0)


main(Path(sys.argv[-1]))
