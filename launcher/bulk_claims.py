"""Who works on what, told by files in a folder that several machines see (NFS, say).

A **chain** is a series of files NAME.0, NAME.1, ... that are never changed. Each appears by one `link`, which
only one process can win, and the last one tells the state: claimed by an owner, or free. So a claim is taken,
given back and taken over by the same step, and two observers of a dead owner can't both take its place.

An **owner** shows life by rewriting its file in `alive/`. Others judge it by whether the content changed
while their own monotonic clock went on, so clocks of machines are never compared. A wrong judgement costs
work done twice, never an answer: what is written under a claim is committed by `link_first` as well.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recloom.data_shards.errors import UserError

BEAT_SECONDS = 2.0
LOCK = "folder"
LOCK_POLL_SECONDS = 0.2
WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV)


def host_name() -> str:
    """This machine's name as a part of file names."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in socket.gethostname())


def machine() -> str:
    """This machine until its next start: two may have one name."""
    with suppress(OSError):
        return f"{host_name()}-{Path('/proc/sys/kernel/random/boot_id').read_text()[:8]}"
    return host_name()


def new_owner(on: str) -> str:
    """A name that no other process ever has, on this machine."""
    return f"{on}@{os.getpid()}-{secrets.token_hex(6)}"


def machine_of(owner: str) -> str:
    return owner.rpartition("@")[0]


def is_gone(error: OSError) -> bool:
    """Whether it says that a file or folder was removed, by another machine perhaps."""
    return error.errno in (errno.ENOENT, errno.ESTALE)


def write_whole(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def link_first(made: Path, name: Path) -> bool:
    """Give the finished file `made` the name `name` too, unless it is taken; whether `made` has it now."""
    try:
        os.link(made, name)
    except FileExistsError:
        # A client of NFS repeats a request whose reply was lost: the name may be taken by `made` itself.
        return os.path.samefile(made, name)
    except OSError as error:
        if error.errno in WITHOUT_LINKS:
            raise UserError(
                f"out = '{name.parent}': the file system makes no hard links ({error.strerror}), by which "
                "engines claim their work: name a folder on another one."
            ) from None
        raise
    return True


class Heartbeat:
    """As a context: rewrites `folder/OWNER` every few seconds from a thread of its own.

    It never makes the folder: whoever ends a pass removes it, and late signs of life must not bring it back.
    """

    def __init__(self, folder: Path, owner: str, seconds: float = BEAT_SECONDS) -> None:
        self.path = folder / owner
        self.seconds = seconds
        self.beats = 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self.try_beat()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join(self.seconds)
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def run(self) -> None:
        while not self.stopped.wait(self.seconds):
            self.try_beat()

    def try_beat(self) -> None:
        self.beats += 1
        with suppress(OSError):  # the share is away for a moment, say; to be taken for dead does no harm
            self.path.write_text(f"{self.beats}\n")  # NFS sends it when the file is closed


@dataclass(frozen=True)
class Sighting:
    """A sign of life: its content, when it was looked at, and for how long it had been the same."""

    value: str | None
    at: float
    still: float


class Witness:
    """Judges whether owners live by their files in `folder`."""

    def __init__(
        self, folder: Path, lease_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder = folder
        self.lease_seconds = lease_seconds
        self.clock = clock
        self.seen: dict[str, Sighting] = {}

    def is_dead(self, owner: str) -> bool:
        """Whether the sign of life has stood still for a lease since this witness first saw it.

        Between two looks at most `BEAT_SECONDS` count: when the share was away, or this process slept, the
        others had no chance to be seen, and must not all be taken for dead at the first look afterwards.
        """
        now, value = self.clock(), self.read(owner)
        before = self.seen.get(owner)
        still = 0.0
        if before and before.value == value:
            still = before.still + min(now - before.at, BEAT_SECONDS)
        self.seen[owner] = Sighting(value, now, still)
        return still >= self.lease_seconds

    def read(self, owner: str) -> str | None:
        """The content, not the time of change: NFS asks the server anew when a file is opened."""
        with suppress(OSError):
            return (self.folder / owner).read_text()
        return None

    def any_alive(self, owners: Iterable[str]) -> bool:
        """Wait until one of them shows life, or all have been still for a lease."""
        first = {owner: self.read(owner) for owner in owners}
        begin = self.clock()
        while first and self.clock() - begin < self.lease_seconds:
            time.sleep(LOCK_POLL_SECONDS)
            # A file that went away is an orderly end.
            if any(value not in (was, None) for o, was in first.items() for value in [self.read(o)]):
                return True
        return False


@dataclass(frozen=True)
class State:
    """What a chain says: its number of records, who has it (None: free), how many died holding it."""

    records: int = 0
    owner: str | None = None
    deaths: int = 0


class Chains:
    """The chains of one folder, as one owner reads and extends them."""

    def __init__(self, folder: Path, owner: str) -> None:
        self.folder = folder
        self.owner = owner
        self.read_before: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def states(self, names: Iterable[str]) -> dict[str, State]:
        """The state of each of these chains. Records never change, so each is read once."""
        counts: dict[str, int] = defaultdict(int)
        for entry in os.listdir(self.folder):
            name, _, number = entry.rpartition(".")
            if number.isdigit():
                counts[name] = max(counts[name], int(number) + 1)
        return {name: summary(self.records(name, counts[name])) for name in names}

    def records(self, name: str, count: int) -> list[dict[str, Any]]:
        known = self.read_before[name]
        while len(known) < count:
            known.append(json.loads((self.folder / f"{name}.{len(known)}").read_text()))
        return known

    def claim(self, name: str, state: State) -> bool:
        """Take what `state` showed as free, or its owner as dead; whether nobody else was faster."""
        return self.append(name, state, {"owner": self.owner})

    def free(self, name: str, state: State, died: bool) -> bool:
        """Give back what `state` showed as claimed; died: its owner failed at it."""
        return self.append(name, state, {"owner": None, "died": died})

    def append(self, name: str, state: State, record: dict[str, Any]) -> bool:
        made = self.folder / f"{name}.{self.owner}.tmp"
        write_whole(made, json.dumps(record))
        try:
            won = link_first(made, self.folder / f"{name}.{state.records}")
        finally:
            made.unlink(missing_ok=True)
        if not won:  # the listing may be an old one: what was just met must be seen next time
            self.records(name, state.records + 1)
        return won


def summary(records: list[dict[str, Any]]) -> State:
    owner, deaths = None, 0
    for record in records:
        taken_over = owner is not None and record["owner"] is not None
        deaths += taken_over or record.get("died", False)
        owner = record["owner"]
    return State(len(records), owner, deaths)


@contextmanager
def folder_lock(work: Path, owner: str, witness: Witness) -> Iterator[None]:
    """One machine at a time changes what all share. The holder may remove `work` as its last step.

    A holder from this machine is a former process: here only one asks at a time (`exclusive_log`).
    """
    folder, held = work / "lock", None
    while held is None:
        chains = Chains(folder, owner)  # each time anew: who is done removes `work`, and the chain with it
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = taken(chains, witness)
        except OSError as error:
            if not is_gone(error):
                raise
        if held is None:
            time.sleep(LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        with suppress(OSError):
            chains.free(LOCK, held, died=False)


def taken(chains: Chains, witness: Witness) -> State | None:
    """The lock's state once it is ours; None while another has it."""
    state = chains.states([LOCK])[LOCK]
    other = state.owner
    is_free = other is None or machine_of(other) == machine_of(chains.owner) or witness.is_dead(other)
    if not is_free or not chains.claim(LOCK, state):
        return None
    return State(state.records + 1, chains.owner)
