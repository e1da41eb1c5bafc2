"""Signs of life between the ranks of a training: who is gone or silent is named, and all others leave.

Rank 0 listens on the port behind the rendezvous; the others connect and both sides say something every
second, one JSON object a line. DeepSpeed by itself notices a killed rank of another node, but a stopped one
or a cut link only after its timeout, in whole minutes, and says nothing of whose fault it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from recloom.data_shards.errors import print_error
from recloom.launcher.cluster.address import listen, listening_address

REQUEUE = 75  # exit code: asked to leave, a checkpoint is written; start the same command again
BEAT_SECONDS = 1.0
LONGEST_LINE = 65536  # bytes; who sends more is none of ours
GRACE_SECONDS = 2.0  # what a rank that saw an error has to say for itself before all are ended
Leave = Callable[[int], None]


@dataclass(frozen=True)
class Place:
    """Which rank this is, and where; `name` is what its node is called."""

    rank: int
    world_size: int
    ranks_a_node: int
    name: str

    @property
    def node(self) -> int:
        return self.rank // self.ranks_a_node

    def __str__(self) -> str:
        return f"rank {self.rank} (node {self.node}, {self.name})"


def place_of(environment: Mapping[str, str]) -> Place:
    """From the variables that DeepSpeed's launcher sets; it numbers the ranks node by node."""
    world_size = int(environment.get("WORLD_SIZE", "1"))
    name = environment.get("RECLOOM_NODE") or socket.gethostname()
    return Place(
        int(environment.get("RANK", "0")), world_size, int(environment.get("LOCAL_SIZE", world_size)), name
    )


@dataclass(frozen=True)
class Patience:
    """Seconds: `silence` of a rank that is there, `start` until all ranks have come."""

    silence: float
    start: float


@dataclass
class Peer:
    """One connection: what came in so far, when, and from which place."""

    connection: socket.socket
    heard: float = field(default_factory=time.monotonic)
    place: Place | None = None
    process: int = 0
    rest: bytes = b""

    def send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # a broken connection shows when it is read
            self.connection.send(json.dumps(message).encode() + b"\n")

    def read(self) -> list[dict[str, Any]] | None:
        """What has come since; None when the other side is gone."""
        try:
            data = self.connection.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > LONGEST_LINE:
            return None
        try:
            found = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return found if all(isinstance(message, dict) for message in found) else None


class Watch:
    """What both sides share: the thread, and the end.

    Args:
        leave: ends this process with an exit code; called from the watching thread.
    """

    def __init__(self, place: Place, address: tuple[str, int], patience: Patience, leave: Leave) -> None:
        self.place = place
        self.address = address
        self.patience = patience
        self.leave = leave
        self.closed = False
        self.looked = time.monotonic()
        self.verdict: tuple[float, str, int] | None = None  # when to end, why, the exit code

    def start(self) -> None:
        threading.Thread(target=self.guarded, name="watch", daemon=True).start()

    def guarded(self) -> None:
        try:
            self.run()
        except OSError as error:
            self.end(f"{self.place} can't watch the other ranks at {self.address}: {error}.", 1)

    def run(self) -> None:
        raise NotImplementedError

    def own_stall(self) -> float:
        """Seconds that this thread did not get to run since it last asked: others are not to blame."""
        now = time.monotonic()
        stall, self.looked = now - self.looked, now
        return stall if stall > BEAT_SECONDS else 0.0

    def close(self, code: int) -> None:
        """This rank leaves on its own account: tell the others, so that they don't miss it."""
        raise NotImplementedError

    def judge(self, sentence: str, code: int) -> None:
        """End in a moment: a rank that fails for the same reason may still print its own."""
        if self.verdict is None:
            self.verdict = (time.monotonic() + GRACE_SECONDS, sentence, code)

    def end_if_due(self) -> None:
        if self.verdict is not None and time.monotonic() > self.verdict[0]:
            self.end(*self.verdict[1:])

    def end(self, sentence: str, code: int, quiet: bool = False) -> None:
        if self.closed:
            return
        if not quiet:
            print_error(f"watch: {sentence}")
        self.leave(code)


class Hub(Watch):
    """Rank 0's side: hears all the others and tells them the end."""

    def __init__(self, place: Place, address: tuple[str, int], patience: Patience, leave: Leave) -> None:
        super().__init__(place, address, patience, leave)
        self.peers: list[Peer] = []
        self.left: set[int] = set()
        self.selector = selectors.DefaultSelector()
        self.listener = listen(listening_address(address[0]), address[1], backlog=1024)
        self.listener.setblocking(False)

    def run(self) -> None:
        self.selector.register(self.listener, selectors.EVENT_READ)
        started = told = self.looked = time.monotonic()
        while not self.closed and len(self.left) < self.place.world_size - 1:
            events = [key.data for key, _ in self.selector.select(BEAT_SECONDS / 4)]
            stall = self.own_stall()
            for peer in self.peers:
                peer.heard += stall
            gone = [peer for peer in events if peer is not None and not self.hear(peer)]
            if None in events:
                self.accept()
            self.drop(gone)
            if time.monotonic() > told + BEAT_SECONDS:
                told = time.monotonic()
                self.tell(beat=True)
            self.look_for_silence()
            self.look_for_absence(started)
            self.end_if_due()

    def accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:  # gone before it was looked at
            return
        connection.setblocking(False)
        peer = Peer(connection)
        self.peers.append(peer)
        self.selector.register(connection, selectors.EVENT_READ, peer)

    def hear(self, peer: Peer) -> bool:
        """Take in what a peer said; False when its connection is no good."""
        messages = peer.read()
        for message in messages or []:
            if "hello" in message:
                if not self.welcome(peer, message):
                    return False
            elif "bye" in message and peer.place is not None:
                self.left.add(peer.place.rank)
                if message["bye"]:
                    self.judge(ended(peer.place, message["bye"]), message["bye"])
            elif "stop" in message:
                # The start on another machine passes on its own signal: all ranks learn it at the next step.
                os.kill(os.getpid(), signal.SIGUSR1)
        return messages is not None

    def welcome(self, peer: Peer, message: dict[str, Any]) -> bool:
        try:
            place, process = Place(*message["hello"]), int(message["process"])
        except (TypeError, ValueError, KeyError):
            return False
        known = {other.place.rank for other in self.peers if other.place}
        if place.world_size != self.place.world_size or place.rank in known | self.left:
            return False
        peer.place, peer.process = place, process
        peer.send(welcome=os.getpid(), name=self.place.name)
        return True

    def drop(self, gone: Iterable[Peer]) -> None:
        """Forget closed connections; a rank that closed it without a word is dead."""
        for peer in gone:
            self.selector.unregister(peer.connection)
            peer.connection.close()
            self.peers.remove(peer)
        dead = [peer.place for peer in gone if peer.place and peer.place.rank not in self.left]
        if dead:
            self.end_all(f"{named(dead)} gone: killed, or crashed without a word.", 1, [])

    def look_for_silence(self) -> None:
        # Ranks of one node fall silent together, but their last words differ by up to a beat.
        there = [peer for peer in self.peers if peer.place and peer.place.rank not in self.left]
        late = time.monotonic() - self.patience.silence
        if any(peer.heard < late for peer in there):
            silent = [peer for peer in there if peer.heard < late + 1.5 * BEAT_SECONDS]
            places = [peer.place for peer in silent if peer.place]
            self.end_all(silence(named(places), self.patience.silence), 1, [p.process for p in silent])

    def look_for_absence(self, started: float) -> None:
        if time.monotonic() < started + self.patience.start:
            return
        come = {0} | self.left | {peer.place.rank for peer in self.peers if peer.place}
        absent = [rank for rank in range(self.place.world_size) if rank not in come]
        if absent:
            places = [Place(r, self.place.world_size, self.place.ranks_a_node, "unseen") for r in absent]
            self.end_all(
                f"{named(places)} not here {self.patience.start:g} s after rank 0: look at what their nodes "
                f"printed, and whether they reach {self.address[0]} port {self.address[1]}.",
                1,
                [],
            )

    def end_all(self, sentence: str, code: int, silent: list[int]) -> None:
        self.tell(end=sentence, code=code, silent=silent)
        kill_siblings(silent)
        self.end(sentence, code)

    def end(self, sentence: str, code: int, quiet: bool = False) -> None:
        self.tell(end=sentence, code=code, silent=[])
        super().end(sentence, code, quiet)

    def tell(self, **message: Any) -> None:
        for peer in list(self.peers):
            peer.send(**message)

    def close(self, code: int) -> None:
        self.closed = True
        self.tell(bye=code)


class Member(Watch):
    """The side of every other rank: hears rank 0 and obeys its verdict."""

    hub: Peer | None = None

    def run(self) -> None:
        hub = self.join()
        if hub is None:
            return
        told = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(hub.connection, selectors.EVENT_READ)
            self.looked = time.monotonic()
            while not self.closed:
                events = selector.select(BEAT_SECONDS / 4)
                # A process that was stopped in there wakes up to no event, whatever has come in the meantime.
                hub.heard += self.own_stall()
                if events and not self.hear(hub):
                    return
                if time.monotonic() > told + BEAT_SECONDS:
                    told = time.monotonic()
                    hub.send(beat=True)
                if time.monotonic() > hub.heard + self.patience.silence:
                    kill_siblings([hub.process])
                    seen = f"{silence(named([self.first(hub)]), self.patience.silence)[:-1]} (seen from"
                    self.end(f"{seen} {self.place}).", 1)
                    return
                self.end_if_due()

    def first(self, hub: Peer) -> Place:
        return hub.place or Place(0, self.place.world_size, self.place.ranks_a_node, self.address[0])

    def join(self) -> Peer | None:
        """Connect as often as it takes: rank 0 may start later, or still be the one of an earlier start."""
        deadline, cause = time.monotonic() + self.patience.start, "no answer"
        while time.monotonic() < deadline and not self.closed:
            try:
                connection = socket.create_connection(self.address, timeout=self.patience.silence)
                hub = self.greet(Peer(connection))
                if hub is not None:
                    return hub
            except OSError as error:
                cause = error.strerror or str(error)
            time.sleep(BEAT_SECONDS / 2)
        where = f"{self.address[0]} port {self.address[1]}"
        self.end(
            f"{self.place} did not reach rank 0 at {where} within {self.patience.start:g} s: {cause}.", 1
        )
        return None

    def greet(self, hub: Peer) -> Peer | None:
        place = self.place
        words = [place.rank, place.world_size, place.ranks_a_node, place.name]
        hub.send(hello=words, process=os.getpid())
        while True:  # the connection's timeout ends a wait for one that accepts and never answers
            messages = hub.read()
            for message in messages or []:
                if "welcome" in message:
                    hub.place = Place(0, place.world_size, place.ranks_a_node, message["name"])
                    hub.process = message["welcome"]
                    hub.connection.setblocking(False)
                    self.hub = hub
                    return hub
            if messages is None:
                hub.connection.close()
                return None

    def hear(self, hub: Peer) -> bool:
        """Take in what rank 0 said; False when there is nothing more to hear."""
        messages = hub.read()
        for message in messages or []:
            if "end" in message:
                kill_siblings(message["silent"])
                # Once a node is enough.
                self.end(
                    message["end"], message["code"], quiet=self.place.rank % self.place.ranks_a_node != 0
                )
                return False
            if "bye" in message and not message["bye"]:
                return False
            if "bye" in message:
                self.judge(ended(self.first(hub), message["bye"]), message["bye"])
        if messages is None and self.verdict is None:
            self.end(f"{named([self.first(hub)])} gone: killed, or crashed without a word.", 1)
        if messages is None and self.verdict is not None:
            time.sleep(GRACE_SECONDS)
            self.end(*self.verdict[1:])
        return messages is not None

    def close(self, code: int) -> None:
        self.closed = True
        if self.hub is not None:
            self.hub.send(bye=code)


def start_watch(environment: Mapping[str, str], patience: Patience, leave: Leave) -> Watch | None:
    """Watch the ranks that the launcher's variables describe; None for a single one."""
    place = place_of(environment)
    if place.world_size == 1:
        return None
    address = (environment["MASTER_ADDR"], watch_port(int(environment["MASTER_PORT"])))
    watch = (Hub if place.rank == 0 else Member)(place, address, patience, leave)
    watch.start()
    return watch


def watch_port(rendezvous_port: int) -> int:
    return rendezvous_port + 1


def ask_to_stop(address: tuple[str, int]) -> bool:
    """Have all ranks write a checkpoint and leave, from a machine that holds none of them."""
    try:
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(json.dumps({"stop": True}).encode() + b"\n")
    except OSError:
        return False
    return True


def kill_siblings(processes: Iterable[int]) -> None:
    """Kill silent ranks of this node: DeepSpeed's launcher would first wait half a minute for them."""
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            # The number may be that of a process of another node: a sibling has our parent.
            if process != os.getpid() and psutil.Process(process).ppid() == os.getppid():
                os.kill(process, signal.SIGKILL)


def named(places: list[Place]) -> str:
    """'ranks 2, 3 (node 1, 10.0.0.2) are', with as many nodes as there are."""
    nodes: dict[int, list[Place]] = {}
    for place in sorted(places, key=lambda place: place.rank):
        nodes.setdefault(place.node, []).append(place)
    groups = [
        f"{'ranks' if len(group) > 1 else 'rank'} {', '.join(str(place.rank) for place in group)} "
        f"(node {node}, {group[0].name})"
        for node, group in nodes.items()
    ]
    return f"{' and '.join(groups)} {'are' if len(places) > 1 else 'is'}"


def silence(who: str, seconds: float) -> str:
    return f"{who} without a sign of life for {seconds:g} s: stopped or hanging, or the link is cut."


def ended(place: Place, code: int) -> str:
    if code == REQUEUE:
        return f"{place} was asked to leave."
    return f"{place} ended with exit code {code}: what it printed says why."
