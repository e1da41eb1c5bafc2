"""Ranks of one machine listen where nobody outside of it comes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recloom.launcher.ranks import free_port, local_environment, loopback

SCRIPT = Path(__file__).parent / "listening_ranks.py"


def test_ranks_of_one_machine_listen_on_its_loopback_interface(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "error", "--num_gpus", "2"]
    command = [*launcher, "--master_port", str(free_port()), str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, env=local_environment(2), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["has_store"] for one in told] == [True, False]
    assert [one["listens"] for one in told] == [["127.0.0.1"], ["127.0.0.1"]]


def test_a_named_interface_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    found = local_environment(2)
    assert (found["GLOO_SOCKET_IFNAME"], found["NCCL_SOCKET_IFNAME"]) == ("ib0", "ib0")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    assert local_environment(2)["GLOO_SOCKET_IFNAME"] == loopback()
