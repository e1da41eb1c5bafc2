"""One engine's way through the plan of a pass: which chunk is next, and whose answers count.

The chunks are in prefix order, so an engine goes on with the neighbour of its last chunk. Where that is
taken, it begins in the middle of the longest free run: the first engines thereby divide the list among
themselves, and who is done early takes half of the largest remainder.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from recloom.data_shards.artifacts import fsync_path
from recloom.launcher.bulk_claims import Chains, State, Witness, is_gone, link_first, write_whole
from recloom.launcher.bulk_plan import CLAIMS, Plan
from recloom.trainer.requests import Answer, chunk_text

FREE, BUSY, DONE = "free", "busy", "done"
IDLE_SECONDS = 0.5


class WorkList:
    """A plan as one owner works at it; out: the folder of the finished chunks.

    deaths: an engine that dies at a chunk frees it for another, but only so many times.
    """

    def __init__(self, plan: Plan, out: Path, owner: str, witness: Witness, deaths: int) -> None:
        self.plan = plan
        self.out = out
        self.owner = owner
        self.witness = witness
        self.deaths = deaths
        self.chains = Chains(plan.folder / CLAIMS, owner)

    def claims(self, waiting: Callable[[], None]) -> Iterator[int]:
        """Chunk after chunk, each claimed, until the plan is over.

        waiting: called again and again while others hold all that is left.
        """
        last = -1
        while missing := self.plan.missing(self.out):
            number = self.claim_next(missing, last)
            if number is None:
                waiting()
                time.sleep(IDLE_SECONDS)
                continue
            yield number
            last = number

    def claim_next(self, missing: Sequence[int], last: int) -> int | None:
        """None when nothing is free, or the plan went away meanwhile."""
        try:
            while True:
                states = self.states(missing)
                number = next_chunk(self.view(states), last)
                if number is None or self.chains.claim(self.plan.chunks[number][0], states[number]):
                    return number
        except OSError as error:
            if not is_gone(error):
                raise
            return None

    def states(self, numbers: Sequence[int]) -> dict[int, State]:
        names = {number: self.plan.chunks[number][0] for number in numbers}
        states = self.chains.states(names.values())
        return {number: states[name] for number, name in names.items()}

    def view(self, states: dict[int, State]) -> list[str]:
        view = [DONE] * len(self.plan.chunks)
        for number, state in states.items():
            held = state.owner is not None and not self.witness.is_dead(state.owner)
            view[number] = BUSY if held or state.deaths > self.deaths else FREE
        return view

    def commit(self, number: int, answers: Sequence[Answer]) -> bool:
        """Put a chunk's file in its place, whole, unless another's is there; whether ours is it."""
        name = self.plan.chunks[number][0]
        made = self.plan.folder / f"{name}.{self.owner}.tmp"
        try:
            write_whole(made, chunk_text(answers))
            won = link_first(made, self.out / name)
            made.unlink(missing_ok=True)
        except OSError as error:
            if not is_gone(error):
                raise
            return False  # the plan is over or was replaced: these answers are not wanted any more
        fsync_path(self.out)
        return won

    def release(self, owners: Callable[[str], bool], died: bool) -> None:
        """Free what these owners, who have ended, still hold, so that nobody waits out their leases."""
        try:
            for number, state in self.states(self.plan.missing(self.out)).items():
                if state.owner is not None and owners(state.owner):
                    self.chains.free(self.plan.chunks[number][0], state, died)
        except OSError as error:
            if not is_gone(error):
                raise


def next_chunk(view: Sequence[str], last: int) -> int | None:
    """What an engine whose last chunk was `last` (-1: none) should claim; None: nothing is free."""
    if last + 1 < len(view) and view[last + 1] == FREE:
        return last + 1
    places = itertools.groupby(range(len(view)), key=lambda number: view[number])
    runs = [list(run) for state, run in places if state == FREE]
    if not runs:
        return None
    longest = max(runs, key=len)
    walked = longest[0] > 0 and view[longest[0] - 1] == BUSY  # its first half is where that engine goes next
    return longest[len(longest) // 2 if walked else 0]
