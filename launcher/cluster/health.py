"""Before a start: does every node have disk, GPUs and a way to the others; do all see the same folder?

The first node listens on its interface; the others come to it one after the other. Each learns a word, under
which it leaves a file in the shared folder, and looks for the first node's. What is wrong is told to all.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from io import BufferedRWPair
from pathlib import Path
from typing import Any

from recloom.data_shards.artifacts import atomic_write_text
from recloom.data_shards.errors import UserError
from recloom.launcher.cluster.address import interface_address, listen
from recloom.launcher.cluster.job import Job

PROBE_BYTES = 16 * 2**20
SEEN_SECONDS = 15.0  # network file systems show new files late
EVERY_GPU = """
import torch
for number in range(torch.cuda.device_count()):
    x = torch.ones(512, 512, device=f"cuda:{number}")
    assert (x @ x).sum().item() == 512.0**3, number
print(torch.cuda.device_count())
"""


def check_nodes(job: Job, node: int, meeting: tuple[str, int]) -> None:
    """Called on every node at about the same time; raises UserError on all when one is not well.

    meeting: address and port where the first node listens.
    """
    problems = [f"node {node} ({socket.gethostname()}): {text}" for text in problems_here(job)]
    problems = receive(job, problems, meeting[1]) if node == 0 else report(job, node, problems, meeting)
    if problems:
        raise UserError("\n".join(problems))
    if node == 0:
        print(f"launch: {len(job.cluster.layout.names)} nodes are well", flush=True)


def problems_here(job: Job) -> list[str]:
    """What a node sees of itself."""
    found = []
    for folder in (Path(job.cluster.shared), Path(tempfile.gettempdir())):
        try:
            free = shutil.disk_usage(folder).free / 1e9
        except OSError as error:
            found.append(f"'{folder}' can't be read ({error.strerror}): mount it there.")
            continue
        if free < job.cluster.health.min_disk_gb:
            least = job.cluster.health.min_disk_gb
            found.append(f"'{folder}' has {free:.1f} GB left, health.min_disk_gb = {least:g}: make room.")
    if job.cluster.layout.has_gpus:
        found += gpu_problems(job.cluster.layout.ranks)
    return found


def gpu_problems(wanted: int) -> list[str]:
    """Computes on every GPU, in a process of its own: one that touched a GPU keeps memory there."""
    done = subprocess.run([sys.executable, "-c", EVERY_GPU], capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [f"a GPU can't multiply matrices ({last}): look at it, or leave the node out."]
    count = int(done.stdout)
    return [] if count >= wanted else [f"it has {count} GPUs and {wanted} are asked for: correct `gpus`."]


def mark(job: Job, word: str, node: int) -> Path:
    return job.folder / f"health-{word}-{node}"


def leave_mark(job: Job, word: str, node: int) -> str | None:
    try:
        atomic_write_text(mark(job, word, node), "")
    except OSError as error:
        return f"it can't write into '{job.folder}' ({error.strerror}): give it the rights."
    return None


def sees(path: Path) -> bool:
    deadline = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # makes a network file system look again
        time.sleep(0.1)
    return True


def receive(job: Job, problems: list[str], port: int) -> list[str]:
    """The first node's side; returns the problems of all nodes."""
    word, count = secrets.token_hex(4), len(job.cluster.layout.names)
    own = leave_mark(job, word, 0)
    problems = problems + ([f"node 0 ({socket.gethostname()}): {own}"] if own else [])
    deadline = time.monotonic() + job.cluster.start_seconds
    waiting: dict[int, BufferedRWPair] = {}
    with contextlib.ExitStack() as held:
        listener = listen(interface_address(job.cluster.interface), port, backlog=count)
        held.enter_context(listener)
        while len(waiting) < count - 1:
            listener.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                absent = sorted(set(range(1, count)) - set(waiting))
                text = f"{nodes(absent)} did not come within {job.cluster.start_seconds:g} s: start them too."
                problems.append(text)
                break
            with contextlib.suppress(OSError, ValueError, KeyError):
                held.enter_context(connection)
                connection.settimeout(job.cluster.start_seconds)
                stream = held.enter_context(connection.makefile("rwb"))
                number, found = hear_node(job, stream, word)
                waiting[number] = stream
                problems += found
        for stream in waiting.values():
            with contextlib.suppress(OSError):
                say(stream, problems=problems)
    for path in job.folder.glob(f"health-{word}-*"):
        path.unlink(missing_ok=True)
    return problems


def hear_node(job: Job, stream: BufferedRWPair, word: str) -> tuple[int, list[str]]:
    """One node's report, with what the first node adds: is its mark seen, is the way fast enough."""
    told = hear(stream)
    number, name, problems = told["node"], f"node {told['node']} ({told['name']})", told["problems"]
    say(stream, word=word)
    if problem := hear(stream)["problem"]:
        problems.append(problem)
    elif not sees(mark(job, word, number)):
        problems.append(f"{name}: '{job.folder}' is not the folder that node 0 sees: mount the same one.")
    started = time.monotonic()
    say(stream, send=PROBE_BYTES)
    left = PROBE_BYTES
    while left > 0 and (data := stream.read(min(left, 2**18))):
        left -= len(data)
    speed = 8e-6 * PROBE_BYTES / (time.monotonic() - started)
    least = job.cluster.health.min_bandwidth_mbit
    if left or speed < least:
        problems.append(
            f"{name}: {speed:.0f} Mbit/s to node 0, health.min_bandwidth_mbit = {least:g}: "
            f"is {job.cluster.interface} the right interface?"
        )
    return number, problems


def report(job: Job, node: int, problems: list[str], meeting: tuple[str, int]) -> list[str]:
    """Another node's side; returns the problems of all nodes."""
    name = f"node {node} ({socket.gethostname()})"
    with meet(job, name, meeting) as stream:
        say(stream, node=node, name=socket.gethostname(), problems=problems)
        told = hear(stream)
        if "word" not in told:  # the ranks' watch listens there already: the others are at work and wait
            return problems
        found = leave_mark(job, told["word"], node)
        if not found and not sees(mark(job, told["word"], 0)):
            found = f"'{job.folder}' lacks what node 0 wrote: mount the same folder."
        say(stream, problem=f"{name}: {found}" if found else None)
        stream.write(bytes(hear(stream)["send"]))
        stream.flush()
        return list(hear(stream)["problems"])


@contextlib.contextmanager
def meet(job: Job, name: str, meeting: tuple[str, int]) -> Iterator[BufferedRWPair]:
    """A stream to the first node, which may start later."""
    deadline = time.monotonic() + job.cluster.start_seconds
    while True:
        try:
            connection = socket.create_connection(meeting, timeout=5)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{name}: node 0 was not reached at {meeting[0]} port {meeting[1]} within "
                    f"{job.cluster.start_seconds:g} s ({error.strerror or error}): start it, open the port."
                ) from None
            time.sleep(0.5)
    with connection, connection.makefile("rwb") as stream:
        connection.settimeout(job.cluster.start_seconds)
        try:
            yield stream
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{name}: the health check broke off ({error}): look at node 0's output."
            ) from None


def say(stream: BufferedRWPair, **message: Any) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def hear(stream: BufferedRWPair) -> dict[str, Any]:
    return dict(json.loads(stream.readline()))


def nodes(numbers: list[int]) -> str:
    return f"node{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
