"""One comparison of an op with a peer; `benchmarks/kernels.py` runs lists of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """What is timed, and what says that both do the same.

    Fields:
        op, peer, shape, dtype: the row's key; shape is text such as "B=32 T=512 H=4096".
        ours, theirs: the calls that are timed, alternating; inputs are made before.
        check: raises when the two results differ; run once before the timing.
        least_bytes: bytes that any implementation must read and write once, for the share of bandwidth.
        labels: further columns' values as text, e.g. {"catalogue": "100000"}.
    """

    op: str
    peer: str
    shape: str
    dtype: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    check: Callable[[], None]
    least_bytes: int
    labels: dict[str, str] = field(default_factory=dict)
