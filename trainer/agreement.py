"""What one rank decides and all ranks do, so that none of them goes on alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from recloom.data_shards.errors import UserError

Value = TypeVar("Value")


def first_decides(work: Callable[[], Value]) -> Value:
    """What `work` returns on rank 0, on all ranks; its UserError is raised by all. Called by all ranks."""
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = work()
        except UserError as error:
            told[1] = str(error)
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise UserError(told[1])
    value: Value = told[0]
    return value


def first_of_any(value: Value | None) -> Value | None:
    """The value of the first rank that has one, on all ranks."""
    values: list[Value | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return next((found for found in values if found is not None), None)
