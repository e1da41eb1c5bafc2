"""Start the ranks of a training stage with the `deepspeed` command, and believe only its end marker."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil

from recloom.data_shards.errors import UserError
from recloom.launcher.cpu_memory import KEEP_MEMORY
from recloom.launcher.processes import die_with_parent
from recloom.trainer.config import RunConfig
from recloom.trainer.parallel_layout import check_ranks
from recloom.trainer.stages import Run

TRAIN = Path(__file__).resolve().parent / "train.py"
RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "CROSS_RANK",
)


def local_ranks(config: RunConfig) -> int:
    """One rank a GPU; without a GPU as many as `parallel.cpu_ranks`.

    Raises UserError when they can't form the groups of `parallel.tensor`.
    """
    import torch

    ranks = torch.cuda.device_count() or config.parallel.cpu_ranks
    check_ranks(config.parallel.tensor, ranks)
    return ranks


def deepspeed_command(ranks: int, arguments: list[str]) -> list[str]:
    """`deepspeed` on this machine. A free port is chosen, so that two trainings can run side by side."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner"]
    # Its own messages go to standard output between ours: only its errors are wanted.
    launcher += ["--log_level", "error"]
    return [*launcher, "--num_gpus", str(ranks), "--master_port", str(free_port()), str(TRAIN), *arguments]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def rank_environment(ranks: int) -> dict[str, str]:
    """Without the variables of an outer launcher; threads shared among the ranks."""
    import torch

    env = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    if not torch.cuda.is_available():
        env = KEEP_MEMORY | env
        env.setdefault("DS_ACCELERATOR", "cpu")
    cores = len(os.sched_getaffinity(0))
    env.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    return env


def local_environment(ranks: int) -> dict[str, str]:
    """The same for ranks of this machine alone: they listen on its loopback interface, unless one is named.

    Left to themselves torch listens on every interface, gloo on the one of the machine's name.
    """
    env = rank_environment(ranks)
    named = env.setdefault("GLOO_SOCKET_IFNAME", loopback())
    env.setdefault("NCCL_SOCKET_IFNAME", named)
    return env


def loopback() -> str:
    """The interface of 127.0.0.1."""
    interfaces = psutil.net_if_addrs().items()
    return next(name for name, held in interfaces if any(one.address == "127.0.0.1" for one in held))


def launch_ranks(run: Run, stage: str, stage_digest: str) -> None:
    """Run a training stage on all local ranks.

    Raises UserError when it does not reach its end marker: the launcher's exit code alone is not
    believed, since it is 0 when the launcher's own child was killed by a signal.
    """
    marker = run.path(f"stages/{stage}.ranks_done")
    marker.unlink(missing_ok=True)
    ranks = local_ranks(run.config)
    command = deepspeed_command(ranks, ["--config", str(run.folder / "config.yaml"), "--stage", stage])
    tie = partial(die_with_parent, os.getpid(), signal.SIGTERM)
    # DeepSpeed's outer launcher does not pass a signal on: the ranks see for themselves that we are gone.
    env = local_environment(ranks) | {"RECLOOM_SUPERVISOR": str(os.getpid())}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, preexec_fn=tie)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code != 0 or not ended_with(marker, stage_digest):
        raise UserError(
            f"stage {stage}: the ranks ended with exit code {code} before the work was done: "
            "the reason is printed above; the same command continues from the last checkpoint."
        )
    marker.unlink()


def ended_with(marker: Path, stage_digest: str) -> bool:
    """Whether the ranks reached the end, with these settings and no others."""
    return marker.is_file() and json.loads(marker.read_text())["digest"] == stage_digest
