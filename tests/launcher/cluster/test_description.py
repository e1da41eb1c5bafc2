"""A cluster's description: all mistakes at once, each with its remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from recloom.launcher.cluster.description import read_cluster
from recloom.launcher.cluster.registry import kind_module, kind_names
from recloom.trainer.config_io import ConfigError

NODES = [{"address": "10.0.0.1", "gpus": 8}, {"address": "10.0.0.2", "gpus": 8}]
GOOD = {"kind": "hostfile", "shared": "/mnt/recloom", "interface": "eth0", "nodes": NODES}
SLURM = {**GOOD, "kind": "slurm", "nodes": 2, "gpus": 8, "time_limit": "2-00:00:00"}


def read(tmp_path: Path, raw: dict[str, Any]) -> Any:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(raw))
    return read_cluster(path)


def mistakes(tmp_path: Path, raw: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, raw)
    return [line.partition("cluster.yaml: ")[2] for line in str(caught.value).splitlines()]


def test_layout_of_listed_and_of_counted_nodes(tmp_path: Path) -> None:
    layout = read(tmp_path, GOOD).layout
    assert (layout.names, layout.ranks, layout.has_gpus) == (("10.0.0.1", "10.0.0.2"), 8, True)
    cpu = {**SLURM, "gpus": None, "cpu_ranks": 2, "nodes": 3}
    layout = read(tmp_path, cpu).layout
    assert (layout.names, layout.ranks, layout.has_gpus) == (("node-0", "node-1", "node-2"), 2, False)


def test_every_kind_has_what_a_launch_calls() -> None:
    assert kind_names() == ["hostfile", "kubernetes", "per_node", "slurm"]
    for name in kind_names():
        module = kind_module(name)
        assert all(callable(getattr(module, part)) for part in ("files", "commands", "start"))


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    nodes = [{"address": "10.0.0.1", "gpu": 8, "gpus": 8}, {"address": "10.0.0.2", "gpus": 0}]
    raw = {**GOOD, "nodes": nodes, "interfaces": "eth0", "port": 80, "environment": {"HF_TOKEN": "hf_abc"}}
    found = mistakes(tmp_path, raw)
    assert len(found) == 5
    text = "\n".join(found)
    assert "nodes.0.gpu: unknown setting; did you mean 'gpus'?" in text
    assert "interfaces: unknown setting; did you mean 'interface'?" in text
    assert "nodes.1.gpus = 0" in text and "port = 80" in text
    assert "environment.HF_TOKEN: it looks like a secret" in text and "hf_abc" not in text


def test_an_unknown_kind_says_which_there_are(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, {**GOOD, "kind": "slrum"})
    assert found == "kind = 'slrum': not one of the known values; did you mean 'slurm'?"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"nodes": [NODES[0], {"address": "10.0.0.2", "gpus": 4}]}, "nodes: they have [8, 4] ranks"),
        ({"nodes": [NODES[0], {"address": "10.0.0.2"}]}, "nodes.1: a node has either gpus or cpu_ranks"),
        ({"nodes": [NODES[0], NODES[0]]}, "nodes: the address 10.0.0.1 is there twice"),
        ({"environment": {"A": "$(rm -rf /)"}}, "environment.A = '$(rm -rf /)': not plain enough"),
        ({"shared": "relative"}, "shared = 'relative'"),
        ({"interface": "eth0; reboot"}, "interface = 'eth0; reboot'"),
        ({"remote": "rsh"}, "remote = 'rsh': not one of the known values"),
    ],
)
def test_rules(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    (found,) = mistakes(tmp_path, {**GOOD, **change})
    assert found.startswith(sentence)


def test_settings_of_one_kind_are_no_settings_of_another(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, {**GOOD, "partition": "gpu"})
    assert found.startswith("partition: unknown setting")
    assert read(tmp_path, {**SLURM, "partition": "gpu"}).partition == "gpu"
