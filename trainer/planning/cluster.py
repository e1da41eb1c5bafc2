"""What a config is planned for: GPUs on nodes, or the CPU ranks of one machine."""

from __future__ import annotations

from dataclasses import dataclass

from recloom.data_shards.errors import UserError
from recloom.trainer.config import RunConfig
from recloom.trainer.planning.memory import GIB, RESERVE


@dataclass(frozen=True)
class Cluster:
    """Ranks, and bytes of memory each; without GPUs the ranks share one machine's memory."""

    ranks: int
    ranks_per_node: int
    memory: float
    has_gpus: bool

    @property
    def num_nodes(self) -> int:
        return -(-self.ranks // self.ranks_per_node)

    @property
    def usable(self) -> float:
        return (1 - RESERVE) * self.memory

    def __str__(self) -> str:
        if not self.has_gpus:
            return f"{self.ranks} CPU ranks that share {gib(self.memory * self.ranks)}"
        nodes = f", {self.num_nodes} nodes of {self.ranks_per_node}" if self.num_nodes > 1 else ""
        return f"{self.ranks} GPU{'s' * (self.ranks > 1)} of {gib(self.memory)}{nodes}"


def make_cluster(config: RunConfig, num_gpus: int, memory_gib: float, gpus_per_node: int) -> Cluster:
    for name, value, least in (("--gpus", num_gpus, 0), ("GPUs a node", gpus_per_node, 1)):
        if value < least:
            raise UserError(f"{name} = {value}: must be at least {least}.")
    if memory_gib <= 0:
        raise UserError(f"--gpu-memory = {memory_gib:g}: must be above 0, give the GiB of one GPU.")
    if num_gpus == 0:
        ranks = config.parallel.cpu_ranks
        return Cluster(ranks, ranks, memory_gib * GIB / ranks, has_gpus=False)
    return Cluster(num_gpus, min(num_gpus, gpus_per_node), memory_gib * GIB, has_gpus=True)


def gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:,.{0 if num_bytes >= 20 * GIB else 1}f} GiB"
