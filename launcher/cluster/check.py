"""The health check of one node, started on all by hostfile.py: `deepspeed ... --num_gpus 1 check.py`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from recloom.data_shards.errors import UserError, print_error
from recloom.launcher.cluster.description import read_cluster
from recloom.launcher.cluster.health import check_nodes
from recloom.launcher.cluster.job import Job
from recloom.trainer.config_io import read_config


def main() -> int:
    parser = argparse.ArgumentParser(description="Check this node's part of a cluster.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--cluster", type=Path, required=True)
    parser.add_argument("--local_rank", type=int, help="set by the launcher")
    options = parser.parse_args()
    try:
        job = Job(read_config(options.config), read_cluster(options.cluster), 0, Path.cwd())
        node, master = int(os.environ["CROSS_RANK"]), os.environ["MASTER_ADDR"]
        check_nodes(job, node, (master, job.cluster.port + 1))
    except UserError as error:
        if os.environ["CROSS_RANK"] == "0":
            print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
