"""Two nodes on one machine: network namespaces that see each other over a pair of virtual interfaces only."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "eth0"
RECLOOM = [sys.executable, "-m", "recloom.launcher.cli"]


def reason_against() -> str | None:
    """Why namespaces can't be made here, or None."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if shutil.which("ip") is None:
        return "needs the command `ip` (iproute2)"
    name = f"rl-try-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return None if done.returncode == 0 else f"network namespaces are refused: {done.stderr.strip()}"


@dataclass(frozen=True)
class Network:
    names: tuple[str, str]

    def inside(self, node: int, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.names[node], *command]

    def link(self, state: str) -> None:
        """Cut the link between the nodes ("down") or mend it ("up")."""
        ip("-n", self.names[0], "link", "set", INTERFACE, state)

    def listening(self, node: int) -> list[str]:
        """The addresses that something on a node listens on, in the kernel's hexadecimal form."""
        command = self.inside(node, ["cat", "/proc/net/tcp", "/proc/net/tcp6"])
        rows = [line.split() for line in subprocess.check_output(command, text=True).splitlines()]
        return [row[1].split(":")[0] for row in rows if len(row) > 3 and row[3] == "0A"]


@contextlib.contextmanager
def network() -> Iterator[Network]:
    names = (f"rl0-{os.getpid()}", f"rl1-{os.getpid()}")
    try:
        for name in names:
            ip("netns", "add", name)
        pair = ["link", "add", INTERFACE, "netns", names[0], "type", "veth"]
        ip(*pair, "peer", "name", INTERFACE, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
            for interface in (INTERFACE, "lo"):
                ip("-n", name, "link", "set", interface, "up")
        yield Network(names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Started:
    """One node's `recloom launch --node I`, its output in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        return self.log.read_text()

    def all_processes(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def rank(self) -> psutil.Process:
        """The one training process below this start."""
        (found,) = [
            child
            for child in self.all_processes()
            if any(word.endswith("launcher/train.py") for word in child.cmdline()[:4])
            and child.environ().get("RANK") is not None
        ]
        return found

    def send_all(self, number: signal.Signals) -> None:
        for process in self.all_processes():
            process.send_signal(number)


def start_node(
    network: Network, node: int, config: Path, cluster: Path, log: Path, *arguments: str
) -> Started:
    command = [*RECLOOM, "launch", str(config), "--cluster", str(cluster), "--node", str(node), *arguments]
    with open(log, "wb") as file:
        process = subprocess.Popen(network.inside(node, command), stdout=file, stderr=subprocess.STDOUT)
    return Started(process, log)


def wait_until(condition: Callable[[], bool], seconds: float, told: Callable[[], str]) -> float:
    """Seconds until the condition held; fails with what `told` says."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, told()
        time.sleep(0.05)
    return time.monotonic() - started
