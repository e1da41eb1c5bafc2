"""Pickles that others read for us, DeepSpeed above all, which asks torch for whole Python objects."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch.load looks at it, whatever its caller asks for


@contextmanager
def data_only(known: Sequence[type]) -> Iterator[None]:
    """Inside, `torch.load` makes tensors, plain containers and objects of the classes `known`.

    It runs no code: for all else in a file it raises pickle.UnpicklingError.
    """
    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        with torch.serialization.safe_globals(list(known)):
            yield
    finally:
        del os.environ[FORCED]
        if before is not None:
            os.environ[FORCED] = before
