"""Slurm: three jobs, each behind the one before: inputs on one node, training on all, the rest on one node.

So nothing waits in an allocation it does not use. The training job goes back to the queue when it failed, or
had to leave behind a checkpoint.
"""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace

from pydantic import Field

from recloom.data_shards.errors import UserError
from recloom.launcher.cluster.description import SizedCluster
from recloom.launcher.cluster.job import Job, exports, network_environment, program, write_files
from recloom.launcher.cluster.per_node import start_of
from recloom.launcher.cluster.supervise import BAD_INPUT
from recloom.launcher.cluster.watch import REQUEUE
from recloom.trainer.systems.registry import recipe

WORD = r"^[A-Za-z0-9_.,:@/=+-]+$"


class Settings(SizedCluster):
    partition: str | None = Field(default=None, pattern=WORD)
    account: str | None = Field(default=None, pattern=WORD)
    qos: str | None = Field(default=None, pattern=WORD)
    constraint: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.,|&*()\[\]-]+$")
    time_limit: str = Field(
        pattern=r"^(\d+-)?\d+(:\d\d){0,2}$", description="Of each job: minutes, H:MM:SS or D-HH:MM:SS."
    )
    cpus_per_rank: int | None = Field(default=None, ge=1)


def files(job: Job) -> dict[str, str]:
    return {
        "inputs.sbatch": inputs_script(job),
        "train.sbatch": train_script(job),
        "rest.sbatch": rest_script(job),
        "submit.sh": submit_script(job),
    }


def commands(job: Job) -> list[str]:
    return [f"bash {shlex.quote(str(job.folder / 'submit.sh'))}"]


def start(job: Job) -> int:
    write_files(job.folder, job.files() | files(job))
    try:
        return subprocess.run(["bash", str(job.folder / "submit.sh")], cwd=job.directory).returncode
    except OSError as error:
        raise UserError(f"submit.sh can't be run ({error.strerror}): do it on a login node.") from None


def head(job: Job, part: str, nodes: int) -> str:
    """The options of one job, and the way into its folder and environment."""
    cluster = job.cluster
    options = {
        "job-name": f"{job.config.name}-{part}",
        "output": job.folder / f"{part}-%j.txt",
        "open-mode": "append",
        "nodes": nodes,
        "ntasks-per-node": 1,
        "time": cluster.time_limit,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "gpus-per-node": cluster.gpus,
        "cpus-per-task": cores(cluster),
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    text = "\n".join(["#!/usr/bin/env bash", *lines])
    inside = (
        f"set -uo pipefail\ncd {shlex.quote(str(job.directory))}\n{exports(network_environment(cluster))}"
    )
    return f"{text}\nREQUEUE\n{inside}"


def cores(cluster: Settings) -> int | None:
    return cluster.cpus_per_rank and cluster.cpus_per_rank * cluster.layout.ranks


def one_node(job: Job, part: str, command: list[str]) -> str:
    """A job that Slurm itself starts again when its node is taken away: finished stages are skipped."""
    return head(job, part, 1).replace("REQUEUE", "#SBATCH --requeue") + f"exec {shlex.join(command)}\n"


def inputs_script(job: Job) -> str:
    stages = recipe(job.config)
    first = next(number for number, stage in enumerate(stages) if stage.where == "ranks")
    command = [program("recloom"), "run", str(job.config_file)]
    if first == 0:
        return one_node(job, "inputs", ["true"])
    return one_node(job, "inputs", [*command, "--until", stages[first - 1].name])


def rest_script(job: Job) -> str:
    return one_node(job, "rest", [program("recloom"), "run", str(job.config_file)])


def train_script(job: Job) -> str:
    """srun starts `recloom launch --node I` once a node; the batch script runs on the first of them."""
    cluster = job.cluster
    signal = f"#SBATCH --requeue\n#SBATCH --signal=USR1@{round(cluster.leave_seconds)}"
    python = shlex.quote(program("python"))
    # Restarts go through the queue: it may give other nodes.
    node = f'exec {start_of(replace(job, restarts=0), "$SLURM_NODEID")} --master "$0" --training-only'
    # srun does not take this over from sbatch.
    cpus = f"--cpus-per-task={cores(cluster)} " if cluster.cpus_per_rank else ""
    return head(job, "train", len(cluster.layout.names)).replace("REQUEUE", signal) + (
        f"master=$({python} -m recloom.launcher.cluster.address {cluster.interface}) || exit {BAD_INPUT}\n"
        # Not killed on a bad exit: the nodes end by themselves, and say whose fault it was.
        f'srun --kill-on-bad-exit=0 {cpus}bash -c {shlex.quote(node)} "$master"\n'
        "code=$?\n"
        f"if [ $code -eq {REQUEUE} ]; then\n"
        "    again=yes\n"
        f'elif [ $code -ne 0 ] && [ $code -ne {BAD_INPUT} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt '
        f"{job.restarts} ]; then\n"
        "    again=yes\n"
        "else\n"
        "    again=no\n"
        "fi\n"
        '[ $again = yes ] && scontrol requeue "$SLURM_JOB_ID"\n'
        "exit $code\n"
    )


def submit_script(job: Job) -> str:
    """Each job waits for the one before; one that can never start, because that failed, is dropped."""
    folder = shlex.quote(str(job.folder))
    return (
        "#!/usr/bin/env bash\nset -euo pipefail\n"
        f"inputs=$(sbatch --parsable {folder}/inputs.sbatch)\n"
        f"train=$(sbatch --parsable --dependency=afterok:${{inputs%%;*}} --kill-on-invalid-dep=yes "
        f"{folder}/train.sbatch)\n"
        f"rest=$(sbatch --parsable --dependency=afterok:${{train%%;*}} --kill-on-invalid-dep=yes "
        f"{folder}/rest.sbatch)\n"
        'echo "submitted: inputs ${inputs%%;*}, train ${train%%;*}, rest ${rest%%;*}"\n'
    )
