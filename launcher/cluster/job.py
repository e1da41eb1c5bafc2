"""What a launch is made of: an experiment, a cluster, and the commands that a user could type."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recloom.data_shards.artifacts import atomic_write_text, cache_dir
from recloom.data_shards.errors import UserError
from recloom.data_shards.secrets import is_secret
from recloom.launcher.cpu_memory import KEEP_MEMORY
from recloom.launcher.ranks import TRAIN, rank_environment
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import config_dict, dump_config
from recloom.trainer.parallel_layout import check_ranks
from recloom.trainer.stages import Run, Stage, is_fresh, stage_digests
from recloom.trainer.systems.registry import recipe


@dataclass(frozen=True)
class Job:
    """One experiment on one cluster.

    Attributes:
        cluster: the checked description, of its kind's class.
        restarts: how often a start that failed is made again, from the last checkpoint.
        directory: where commands are run; relative paths of the config count from here.
    """

    config: RunConfig
    cluster: Any
    restarts: int
    directory: Path

    @property
    def run_folder(self) -> Path:
        return (self.directory / self.config.folder).resolve()

    @property
    def folder(self) -> Path:
        """Where what the launcher writes lies; all nodes see it."""
        return self.run_folder / "launch"

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def cluster_file(self) -> Path:
        return self.folder / "cluster.yaml"

    @property
    def hosts(self) -> Path:
        return self.folder / "hosts"

    def files(self) -> dict[str, str]:
        """What every kind writes: the settings with all overrides, the cluster, DeepSpeed's hostfile."""
        layout = self.cluster.layout
        return {
            "config.yaml": dump_config(self.config),
            "cluster.yaml": yaml.safe_dump(config_dict(self.cluster), sort_keys=False),
            "hosts": "".join(f"{name} slots={layout.ranks}\n" for name in layout.names),
        }


def check_job(job: Job) -> None:
    """What the two YAMLs must hold together; raises UserError."""
    from recloom.launcher.train import check_trains

    check_trains(job.config)
    layout = job.cluster.layout
    check_ranks(job.config.parallel.tensor, layout.ranks * len(layout.names))
    shared = Path(job.cluster.shared).resolve()
    if not job.run_folder.is_relative_to(shared):
        raise UserError(
            f"run_dir = '{job.config.folder}': outside of the cluster's shared = '{job.cluster.shared}', so "
            f"the nodes would not see each other's files: add --run_dir {shared}/{job.config.name}."
        )
    if not all(c.isalnum() or c in "_./-" for c in f"{job.run_folder}{job.directory}"):
        raise UserError(
            f"run_dir = '{job.run_folder}', started in '{job.directory}': both become part of scripts: use "
            "letters, digits and _./- only."
        )


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        atomic_write_text(folder / name, text)


def program(name: str) -> str:
    """A command of this environment, so that no node needs it on its PATH."""
    return str(Path(sys.executable).parent / name)


def train_arguments(job: Job) -> list[str]:
    cluster = job.cluster
    watch = ["--watch", f"{cluster.watch_seconds:g}", "--watch-start", f"{cluster.start_seconds:g}"]
    return [str(TRAIN), "--config", str(job.config_file), *watch]


def deepspeed_start(job: Job) -> list[str]:
    # Its own messages go to standard output between ours: only its errors are wanted.
    return [program("deepspeed"), "--log_level", "error", "--hostfile", str(job.hosts)]


def node_command(job: Job, node: int, master: str) -> list[str]:
    """The training's part on one node, started there."""
    place = ["--no_ssh", "--node_rank", str(node)]
    meeting = ["--master_addr", master, "--master_port", str(job.cluster.port)]
    return [*deepspeed_start(job), *place, *meeting, *train_arguments(job)]


def rest_command(job: Job) -> list[str]:
    """The stages behind the training (and before, when they are missing), on one node."""
    return [program("recloom"), "run", str(job.config_file)]


def network_environment(cluster: Any) -> dict[str, str]:
    """What the ranks of all nodes share; nothing of the caller's own environment is in it."""
    device = {} if cluster.layout.has_gpus else {"DS_ACCELERATOR": "cpu", **KEEP_MEMORY}
    return {
        # Without it gloo may tell the other nodes the loopback address.
        "GLOO_SOCKET_IFNAME": cluster.interface,
        # '=': this very name; NCCL takes a plain one as the beginning of names.
        "NCCL_SOCKET_IFNAME": f"={cluster.interface}",
        "RECLOOM_CACHE": f"{cluster.shared.rstrip('/')}/cache",
        "TOKENIZERS_PARALLELISM": "false",
        **device,
        **cluster.environment,
    }


def node_environment(job: Job, name: str) -> dict[str, str]:
    """A node's own variables, with what the ranks need to know of the process that watches over them."""
    own = {"RECLOOM_NODE": name, "RECLOOM_SUPERVISOR": str(os.getpid())}
    return rank_environment(job.cluster.layout.ranks) | network_environment(job.cluster) | own


def exports(environment: dict[str, str]) -> str:
    """Lines of a shell script; secrets can't be among them (see `description.secret_named`)."""
    assert not any(is_secret(name, value) for name, value in environment.items())
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(environment.items()))


def shell(command: Iterable[str]) -> str:
    return shlex.join(command)


def training_finished(job: Job) -> bool:
    """Whether every training stage has left its marker; exit codes are not believed."""
    config = job.config.model_copy(update={"run_dir": str(job.run_folder)})
    run = Run(config, job.run_folder, cache_dir())
    stages: list[Stage] = recipe(config)
    digests = stage_digests(stages, run)
    return all(is_fresh(run, stage, digests[stage.name]) for stage in stages if stage.where == "ranks")
