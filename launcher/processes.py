"""What the commands share about processes."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import threading
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `by` to this process when its parent dies, so that no orphan works on.

    `parent` is the process id that the parent had: if another one has it by now, this process ends.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        raise SystemExit("The process that started this one is gone.")


def leave_with(process: int, leave: Callable[[int], None]) -> None:
    """Call `leave(1)` when `process`, an ancestor that is not the parent, has ended.

    A parent-death signal does not reach past a process in between that dies without passing it on.
    """
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        leave(1)
        return

    def wait() -> None:
        select.select([handle], [], [])
        leave(1)

    threading.Thread(target=wait, name="supervisor", daemon=True).start()
