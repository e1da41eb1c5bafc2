"""Start each node by hand, or by whatever runs commands on it: no ssh between the nodes.

`recloom launch CONFIG --cluster CLUSTER --node I` on node I runs
`deepspeed --hostfile ... --no_ssh --node_rank I ... launcher/train.py --config ...` there.
"""

from __future__ import annotations

import shlex

from recloom.launcher.cluster.description import ListedCluster
from recloom.launcher.cluster.job import Job, program, write_files


class Settings(ListedCluster):
    pass


def files(job: Job) -> dict[str, str]:
    return {}


def commands(job: Job) -> list[str]:
    """What to type, one a node."""
    where = shlex.quote(str(job.directory))
    names = job.cluster.layout.names
    return [f"cd {where} && {start_of(job, number)}  # on {name}" for number, name in enumerate(names)]


def start_of(job: Job, node: int | str) -> str:
    """The start of one node as a line for a shell; `node` may be a variable of it."""
    number = f'"{node}"' if isinstance(node, str) else str(node)
    files = ["--cluster", str(job.cluster_file), "--restarts", str(job.restarts)]
    return f"{shlex.join([program('recloom'), 'launch', str(job.config_file), *files])} --node {number}"


def start(job: Job) -> int:
    """Nothing can be started from here: say what to do."""
    write_files(job.folder, job.files())
    print("\n".join(["Type on the nodes:", *commands(job)]))
    return 0
