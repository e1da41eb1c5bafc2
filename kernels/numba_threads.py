"""numba and torch on the same threads of OpenMP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch


@contextmanager
def as_many_threads_as_torch() -> Iterator[None]:
    """numba's parallel loops take as many threads as torch has, and leave torch its own.

    The first such loop of a process starts numba's layer over OpenMP, which would give torch all cores:
    ranks that share a machine would then be slowed down and, rounding otherwise, no longer repeatable.
    """
    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    numba.set_num_threads(min(torch_threads, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(numba_threads)
        torch.set_num_threads(torch_threads)
