"""Start all nodes from one of them (or any machine that has the shared folder): by pdsh, or by plain ssh.

pdsh is DeepSpeed's own way: `deepspeed --hostfile ... launcher/train.py --config ...`. With ssh our own start
runs on every node (`recloom launch --node I`): it leaves no orphans, and hears signals.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Literal

from pydantic import Field

from recloom.data_shards.errors import UserError
from recloom.data_shards.secrets import is_secret
from recloom.launcher.cluster.description import ListedCluster
from recloom.launcher.cluster.job import (
    Job,
    deepspeed_start,
    network_environment,
    rest_command,
    shell,
    train_arguments,
    write_files,
)
from recloom.launcher.cluster.per_node import start_of
from recloom.launcher.cluster.supervise import Supervisor, end_group, train
from recloom.launcher.cluster.watch import REQUEUE, ask_to_stop, watch_port

POLL_SECONDS = 0.2


class Settings(ListedCluster):
    remote: Literal["pdsh", "ssh"] = Field(default="pdsh", description="What carries commands to the nodes.")
    ssh_port: int | None = Field(default=None, ge=1, le=65535)


def files(job: Job) -> dict[str, str]:
    """`environment` is read by DeepSpeed, which forwards few variables of its own accord."""
    variables = sorted(network_environment(job.cluster).items())
    return {"environment": "".join(f"{name}={value}\n" for name, value in variables)}


def commands(job: Job) -> list[str]:
    if job.cluster.remote == "ssh":
        return [shell(command) for command in ssh_commands(job)]
    script = str(job.folder / "environment")
    return [
        f"DS_ENV_FILE={shlex.quote(script)} {shell(pdsh_check(job))}",
        f"DS_ENV_FILE={shlex.quote(script)} {shell(pdsh_command(job))}",
        shell(rest_command(job)),
    ]


def start(job: Job) -> int:
    write_files(job.folder, job.files() | files(job))
    supervisor = Supervisor(job.cluster.leave_seconds)
    supervisor.listen()
    return start_by_ssh(job, supervisor) if job.cluster.remote == "ssh" else start_by_pdsh(job, supervisor)


def pdsh_start(job: Job) -> list[str]:
    port = [] if job.cluster.ssh_port is None else ["--ssh_port", str(job.cluster.ssh_port)]
    first = job.cluster.layout.names[0]
    return [*deepspeed_start(job), *port, "--master_addr", first, "--master_port", str(job.cluster.port)]


def pdsh_command(job: Job) -> list[str]:
    return [*pdsh_start(job), *train_arguments(job)]


def pdsh_check(job: Job) -> list[str]:
    """The health check by the same way, one process a node."""
    script = str(Path(__file__).resolve().parent / "check.py")
    files = ["--config", str(job.config_file), "--cluster", str(job.cluster_file)]
    return [*pdsh_start(job), "--num_gpus", "1", script, *files]


def start_by_pdsh(job: Job, supervisor: Supervisor) -> int:
    environment = pdsh_environment(job)
    if supervisor.run(pdsh_check(job), environment, end_group) != 0:
        raise UserError("The nodes are not well, see above: mend that and start again.")

    def pass_on(group: int) -> None:
        # Signals end pdsh and not the ranks, which sit elsewhere; rank 0 listens for this word.
        address = (job.cluster.layout.names[0], watch_port(job.cluster.port))
        if not ask_to_stop(address):
            end_group(group)

    command = pdsh_command(job)
    print(f"launch: {shell(command)}", flush=True)
    code = train(job, supervisor, command, environment, pass_on)
    return code or supervisor.run(rest_command(job), environment, end_group)


def pdsh_environment(job: Job) -> dict[str, str]:
    """DeepSpeed puts some of the caller's variables into the remote command: no secret may be among them."""
    kept = {name: value for name, value in os.environ.items() if not is_secret(name, value)}
    shared = network_environment(job.cluster)
    return kept | shared | {"DS_ENV_FILE": str(job.folder / "environment")}


def ssh_commands(job: Job) -> list[list[str]]:
    """One a node; `-tt` ties the remote processes to this connection, and so to this process."""
    port = [] if job.cluster.ssh_port is None else ["-p", str(job.cluster.ssh_port)]
    options = ["-tt", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=10", *port]
    remote = [f"cd {shlex.quote(str(job.directory))} && exec {start_of(job, n)}" for n in numbers(job)]
    names = job.cluster.layout.names
    return [["ssh", *options, name, line] for name, line in zip(names, remote, strict=True)]


def numbers(job: Job) -> range:
    return range(len(job.cluster.layout.names))


def start_by_ssh(job: Job, supervisor: Supervisor) -> int:
    """All nodes at once; they start again and end by themselves, each on its own."""
    started = [subprocess.Popen(c, stdin=subprocess.DEVNULL) for c in ssh_commands(job)]
    told = False
    try:
        while any(process.poll() is None for process in started):
            if supervisor.asked and not told:
                told = True
                if not ask_to_stop((job.cluster.layout.names[0], watch_port(job.cluster.port))):
                    break
            time.sleep(POLL_SECONDS)
    finally:
        for process in started:
            process.terminate()
            process.wait()
    codes = [process.returncode for process in started]
    if REQUEUE in codes or supervisor.asked:
        return REQUEUE
    return next((code if code > 0 else 1 for code in codes if code), 0)
