"""A trie and its restrictions as tensors of a device, copied there once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from recloom.kernels.token_trie import TokenTrie, end_mark
from recloom.kernels.trie_restrictions import Restrictions


@dataclass(frozen=True)
class TrieTensors:
    """What a step reads of a TokenTrie; `end` is the mark of an end in tail_token_T."""

    first_edge_S1: torch.Tensor
    edge_token_E: torch.Tensor
    edge_target_E: torch.Tensor
    tail_token_T: torch.Tensor
    end: int


def trie_tensors(trie: TokenTrie, device: torch.device) -> TrieTensors:
    """The trie's arrays on `device`; kept with the trie, so only the first call copies."""
    kept = trie.copies
    if device not in kept:
        kept[device] = TrieTensors(
            on_device(trie.first_edge_S1, device),
            on_device(trie.edge_token_E, device),
            on_device(trie.edge_target_E, device),
            on_device(trie.tail_token_T, device),
            end_mark(trie.tail_token_T.dtype),
        )
    return kept[device]


def restriction_tensors(
    restrictions: Restrictions | None, requests: int, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """(offset_B1 int64, edge_P int32, only_B int32); without restrictions nothing is forbidden."""
    if restrictions is None:
        return (
            torch.zeros(requests + 1, dtype=torch.int64, device=device),
            torch.zeros(0, dtype=torch.int32, device=device),
            torch.zeros(requests, dtype=torch.int32, device=device),
        )
    arrays = (restrictions.offset_B1, restrictions.edge_P, restrictions.only_B.astype(np.int32))
    return tuple(on_device(array, device) for array in arrays)


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    # a mapped file is read-only, which torch warns about; the tensors here are only read
    writable = array if array.flags.writeable else array.copy()
    return torch.from_numpy(np.ascontiguousarray(writable)).to(device, non_blocking=True)
