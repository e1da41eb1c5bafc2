"""One node of a launch, started on that node: health check, training, and on the first node the rest."""

from __future__ import annotations

import os

from recloom.data_shards.errors import UserError
from recloom.launcher.cluster.address import interface_address
from recloom.launcher.cluster.health import check_nodes
from recloom.launcher.cluster.job import (
    Job,
    node_command,
    node_environment,
    rest_command,
    shell,
    training_finished,
    write_files,
)
from recloom.launcher.cluster.supervise import Supervisor, ask_group, end_group, train


def start_node(job: Job, node: int, master: str | None, with_rest: bool) -> int:
    """Work as node number `node` until the training is done; the exit code.

    Args:
        master: the first node's address on the interface; None: it is in the description.
        with_rest: the first node walks the other stages behind the training.
    """
    layout = job.cluster.layout
    if not 0 <= node < len(layout.names):
        last = len(layout.names) - 1
        raise UserError(f"--node {node}: the cluster has {last + 1} nodes: give a number from 0 to {last}.")
    # The first node listens on its interface, whatever it is called elsewhere.
    own = interface_address(job.cluster.interface)
    master = own if node == 0 else master or layout.names[0]
    name = layout.names[node] if layout.names[node] != f"node-{node}" else os.uname().nodename
    if node == 0:
        write_files(job.folder, job.files())
    supervisor = Supervisor(job.cluster.leave_seconds)
    supervisor.listen()
    environment = node_environment(job, name)
    os.environ["RECLOOM_CACHE"] = environment["RECLOOM_CACHE"]  # digests look into the cache
    if not training_finished(job):
        check_nodes(job, node, (master, job.cluster.port + 1))
        command = node_command(job, node, master)
        print(f"launch: {shell(command)}", flush=True)
        code = train(job, supervisor, command, environment, ask_group)
        if code != 0:
            return code
    if node != 0 or not with_rest:
        return 0
    return supervisor.run(rest_command(job), environment, end_group)
