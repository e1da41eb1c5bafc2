"""Who is gone or silent is named, within the time given."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from recloom.launcher.cluster.watch import REQUEUE, Hub, Member, Patience, Place, ask_to_stop
from recloom.launcher.ranks import free_port

PATIENCE = Patience(silence=5, start=20)


class Ranks:
    """A hub and members in one process; what they would leave with is kept."""

    def __init__(self, count: int, patience: Patience = PATIENCE) -> None:
        self.address = ("127.0.0.1", free_port())
        self.count = count
        self.codes: dict[int, int] = {}
        self.hub = Hub(self.place(0), self.address, patience, self.leave(0))
        self.hub.start()

    def place(self, rank: int) -> Place:
        return Place(rank, self.count, 2, f"host{rank // 2}")

    def leave(self, rank: int) -> Callable[[int], None]:
        def note(code: int) -> None:
            self.codes.setdefault(rank, code)
            watch = self.hub if rank == 0 else self.members[rank]
            watch.closed = True

        return note

    members: dict[int, Member]

    def join(self, *ranks: int) -> None:
        self.members = {
            rank: Member(self.place(rank), self.address, PATIENCE, self.leave(rank)) for rank in ranks
        }
        for member in self.members.values():
            member.start()
        wait(lambda: all(member.hub is not None for member in self.members.values()))

    def raw(self, rank: int) -> socket.socket:
        """A rank that says hello and then nothing more."""
        connection = socket.create_connection(self.address)
        place = self.place(rank)
        hello = [place.rank, place.world_size, place.ranks_a_node, place.name]
        connection.sendall(json.dumps({"hello": hello, "process": 0}).encode() + b"\n")
        assert "welcome" in connection.recv(200).decode()
        return connection


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_silent_rank_is_named_on_all_nodes(capfd: pytest.CaptureFixture[str]) -> None:
    ranks = Ranks(4)
    ranks.join(2)
    silent = [ranks.raw(1), ranks.raw(3)]
    wait(lambda: set(ranks.codes) == {0, 2})
    assert set(ranks.codes.values()) == {1}
    told = capfd.readouterr().err
    sentence = "rank 1 (node 0, host0) and rank 3 (node 1, host1) are without a sign of life for 5 s"
    assert told.count(sentence) == 2, "rank 0 and the first rank of node 1 say it"
    assert silent


def test_a_rank_that_vanishes_is_named_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    ranks = Ranks(3, Patience(silence=50, start=50))
    ranks.join(1)
    ranks.raw(2).close()
    wait(lambda: set(ranks.codes) == {0, 1})
    assert "rank 2 (node 1, host1) is gone" in capfd.readouterr().err


def test_rank_0_that_vanishes_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        codes: list[int] = []
        member = Member(Place(1, 2, 1, "b"), listener.getsockname(), PATIENCE, codes.append)
        member.start()
        connection, _ = listener.accept()
        assert json.loads(connection.recv(200))["hello"][0] == 1
        connection.sendall(b'{"welcome": 0, "name": "a"}\n')
        wait(lambda: member.hub is not None)
        connection.close()
        wait(lambda: codes == [1])
    assert "rank 0 (node 0, a) is gone" in capfd.readouterr().err


def test_strangers_change_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    ranks = Ranks(2)
    ranks.join(1)
    for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"hello": 1}\n', b"[]\n", b"x" * 10**6):
        with socket.create_connection(ranks.address) as stranger, contextlib.suppress(OSError):
            stranger.sendall(words)
            stranger.recv(10)
    time.sleep(3)
    assert ranks.codes == {} and capfd.readouterr().err == ""
    ranks.hub.close(0)


def test_absent_ranks_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    ranks = Ranks(4, Patience(silence=30, start=1))
    ranks.join(1)
    wait(lambda: set(ranks.codes) == {0, 1})
    assert "ranks 2, 3 (node 1, unseen) are not here 1 s after rank 0" in capfd.readouterr().err


def test_an_error_and_a_request_to_leave_reach_all_with_their_code(capfd: pytest.CaptureFixture[str]) -> None:
    for code, told in ((2, "ended with exit code 2"), (REQUEUE, "was asked to leave")):
        ranks = Ranks(3)
        ranks.join(1, 2)
        ranks.members[2].close(code)
        wait(lambda ranks=ranks: set(ranks.codes) == {0, 1})  # type: ignore[misc]
        assert set(ranks.codes.values()) == {code}
        assert f"rank 2 (node 1, host1) {told}" in capfd.readouterr().err


def test_those_that_finish_are_not_missed(capfd: pytest.CaptureFixture[str]) -> None:
    ranks = Ranks(3)
    ranks.join(1, 2)
    ranks.members[2].close(0)
    time.sleep(3)
    ranks.hub.close(0)
    time.sleep(3)
    assert ranks.codes == {} and capfd.readouterr().err == ""


def test_a_request_from_elsewhere_becomes_the_signal_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr("recloom.launcher.cluster.watch.os.kill", lambda process, number: sent.append(number))
    ranks = Ranks(2)
    ranks.join(1)
    assert ask_to_stop(ranks.address)
    wait(lambda: len(sent) == 1)
    ranks.hub.close(0)
    assert not ask_to_stop(("127.0.0.1", free_port()))


STOPPED = """
import os, sys, time
from recloom.launcher.cluster.watch import Member, Patience, Place
Member(Place(1, 2, 1, "b"), ("127.0.0.1", int(sys.argv[1])), Patience(5, 60), os._exit).start()
time.sleep(300)
"""


def test_who_was_stopped_itself_listens_before_it_blames_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", STOPPED, str(listener.getsockname()[1])]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        connection, _ = listener.accept()
        connection.recv(200)
        connection.sendall(b'{"welcome": 0, "name": "a"}\n')
        time.sleep(1)
        process.send_signal(signal.SIGSTOP)
        time.sleep(6)
        connection.sendall(b'{"end": "rank 1 was silent", "code": 1, "silent": []}\n')
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=60)[1] == "watch: rank 1 was silent\n"
        assert process.returncode == 1
