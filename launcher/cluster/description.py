"""The description of a cluster: a small YAML beside the experiment's, checked as a whole.

What every kind of launcher needs is here; each kind's file adds its own (`class Settings`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ConfigDict, Field, ValidationError, model_validator

from recloom.data_shards.secrets import is_secret
from recloom.launcher.cluster.registry import kind_module, kind_names
from recloom.trainer.config import Block
from recloom.trainer.config_errors import sentences
from recloom.trainer.config_io import ConfigError, read_file
from recloom.trainer.config_rules import Rule, broken_rules
from recloom.trainer.config_schema import narrowed

PLAIN = re.compile(r"[A-Za-z0-9_./:,=@%+^-]*")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Layout:
    """The nodes by what they are called, and the ranks on each; DeepSpeed needs the same number on each."""

    names: tuple[str, ...]
    ranks: int
    has_gpus: bool


class HealthBlock(Block):
    min_disk_gb: float = Field(default=20, ge=0, description="Free in shared and /tmp, GB.")
    min_bandwidth_mbit: float = Field(
        default=100, ge=0, description="From every node to the first, Mbit/s; 0: not measured."
    )


class Cluster(Block):
    """What all kinds share."""

    kind: str = Field(description="A launcher of launcher/cluster.")
    shared: str = Field(
        pattern=r"^/[A-Za-z0-9_./-]*$",
        description="A folder that all nodes see under this absolute path, of letters, digits and _./-",
    )
    interface: str = Field(
        pattern=r"^[A-Za-z0-9_.-]{1,15}$", description="The network interface that the ranks talk over."
    )
    port: int = Field(
        default=29500, ge=1024, le=65534, description="Of the rendezvous; the next one is used as well."
    )
    watch_seconds: float = Field(
        default=30, ge=5, description="A rank that is silent for so long ends the start."
    )
    start_seconds: float = Field(default=600, ge=10, description="Until all nodes and ranks have come.")
    leave_seconds: float = Field(
        default=120, ge=1, description="For the checkpoint when the job is asked to leave."
    )
    environment: dict[str, str] = Field(default={}, description="Variables of all ranks; no secrets.")
    health: HealthBlock = HealthBlock()

    @property
    def layout(self) -> Layout:
        raise NotImplementedError

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        return (Rule(("environment",), secret_named), Rule(("environment",), not_plain))

    @model_validator(mode="after")
    def check_together(self) -> Cluster:
        problems = broken_rules(cast(Any, self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


class OpenCluster(Cluster):
    """A description whose kind is unknown: the settings of kinds can't be judged."""

    model_config = ConfigDict(extra="allow")


class Node(Block):
    """One machine: its address on `interface` and its GPUs, or its ranks where it has none."""

    address: str = Field(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$", description="IPv4 address or host name."
    )
    gpus: int | None = Field(default=None, ge=1)
    cpu_ranks: int | None = Field(default=None, ge=1)


class ListedCluster(Cluster):
    """Nodes known by address; the first one holds rank 0."""

    nodes: tuple[Node, ...] = Field(min_length=1)

    @property
    def layout(self) -> Layout:
        first = self.nodes[0]
        names = tuple(node.address for node in self.nodes)
        return Layout(names, first.gpus or first.cpu_ranks or 1, first.gpus is not None)

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        fields = ("nodes",)
        found = (Rule(fields, one_device), Rule(fields, same_ranks), Rule(fields, different_addresses))
        return (*super().rules(), *found)


class SizedCluster(Cluster):
    """Nodes that a scheduler picks: how many, and what each has."""

    nodes: int = Field(ge=1)
    gpus: int | None = Field(default=None, ge=1, description="GPUs a node.")
    cpu_ranks: int | None = Field(default=None, ge=1, description="Ranks a node without GPUs.")

    @property
    def layout(self) -> Layout:
        names = tuple(f"node-{number}" for number in range(self.nodes))
        return Layout(names, self.gpus or self.cpu_ranks or 1, self.gpus is not None)

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        return (*super().rules(), Rule(("gpus", "cpu_ranks"), one_device))


def secret_named(cluster: Cluster) -> str | None:
    named = [name for name, value in cluster.environment.items() if is_secret(name, value)]
    if not named:
        return None
    return (
        f"environment.{named[0]}: it looks like a secret, and what stands here is written into scripts and "
        "logs, remove it and set it on the nodes themselves"
    )


def not_plain(cluster: Cluster) -> str | None:
    for name, value in cluster.environment.items():
        if not NAME.fullmatch(name) or not PLAIN.fullmatch(value):
            return (
                f"environment.{name} = {value!r}: not plain enough for every launcher, use letters, digits "
                "and _./:,=@%+^- only"
            )
    return None


def one_device(cluster: Any) -> str | None:
    nodes = cluster.nodes if isinstance(cluster, ListedCluster) else [cluster]
    for number, node in enumerate(nodes):
        if (node.gpus is None) == (node.cpu_ranks is None):
            where = f"nodes.{number}" if isinstance(cluster, ListedCluster) else "gpus"
            return f"{where}: a node has either gpus or cpu_ranks, give one of the two"
    return None


def same_ranks(cluster: ListedCluster) -> str | None:
    kinds = {(node.gpus, node.cpu_ranks) for node in cluster.nodes}
    if len(kinds) == 1 or one_device(cluster):
        return None
    told = [node.gpus or node.cpu_ranks for node in cluster.nodes]
    return f"nodes: they have {told} ranks, DeepSpeed's launcher needs the same number and kind on each"


def different_addresses(cluster: ListedCluster) -> str | None:
    addresses = [node.address for node in cluster.nodes]
    twice = [address for address in addresses if addresses.count(address) > 1]
    return f"nodes: the address {twice[0]} is there twice, name each node once" if twice else None


def schema_of(raw: dict[str, Any]) -> Any:
    """The schema that fits the kind in `raw`; an unknown kind is left to pydantic to report."""
    names = kind_names()
    kind = raw.get("kind")
    base = kind_module(kind).Settings if kind in names else OpenCluster
    return narrowed("Cluster", base, kind=names)


def read_cluster(path: Path) -> Any:
    """Read and check a description; raises ConfigError with one sentence a mistake, all at once."""
    raw = read_file(path)
    schema = schema_of(raw)
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        found = sentences(raw, schema, error)
        raise ConfigError("\n".join(f"{path}: {text}" for text in found)) from None
