"""What the commands share about processes."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `by` to this process when its parent dies, so that no orphan works on.

    `parent` is the process id that the parent had: if another one has it by now, this process ends.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        raise SystemExit("The process that started this one is gone.")
