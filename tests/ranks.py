"""Start a function of a test module on several gloo ranks of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from recloom.launcher.ranks import free_port


def run_ranks(script: Path, world_size: int, *arguments: str, timeout: float = 300) -> None:
    """Run `python script arguments` once a rank with the launcher's variables; fails when one fails."""
    port = str(free_port())
    processes = []
    for rank in range(world_size):
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(script), *arguments]
        processes.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, f"rank {rank} of {world_size} failed:\n{output[-6000:]}"
