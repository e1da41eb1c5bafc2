"""Attention of all samples of a packed row in one call: torch's variable-length flash attention, on GPUs.

A call a sample starts a kernel for each; this one reads where samples begin from a tensor. It needs no
package beside torch.

Shapes: B = 1 row, H heads of queries, K heads of keys and values, T tokens of the row, D head width,
S samples.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

AMPERE = (8, 0)
WIDEST = 256
CAUSAL = (-1, 0)  # a window: everything before, nothing behind


def fits(query_BHTD: Tensor, dropout: float) -> bool:
    """Whether flash attention takes such a row: half precision on sm_80 or newer, heads of up to 256."""
    if query_BHTD.device.type != "cuda" or dropout > 0:
        return False
    width = query_BHTD.shape[3]
    is_half = query_BHTD.dtype in (torch.bfloat16, torch.float16)
    is_new = torch.cuda.get_device_capability(query_BHTD.device) >= AMPERE
    return is_half and width <= WIDEST and width % 8 == 0 and is_new


def varlen_attention(
    query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, boundaries: list[int], scaling: float | None
) -> Tensor:
    """Causal attention inside each sample, (B, T, H, D).

    boundaries: ascending token offsets, the first 0, the last T.
    """
    from torch.nn.attention.varlen import varlen_attn

    starts_S1, longest = starts(tuple(boundaries), query_BHTD.device)
    query_THD, key_TKD, value_TKD = (one[0].transpose(0, 1) for one in (query_BHTD, key_BKTD, value_BKTD))
    found_THD = varlen_attn(
        query_THD,
        key_TKD,
        value_TKD,
        starts_S1,
        starts_S1,
        longest,
        longest,
        scale=scaling,
        window_size=CAUSAL,
        enable_gqa=query_BHTD.shape[1] != key_BKTD.shape[1],
    )
    assert isinstance(found_THD, Tensor)
    return found_THD[None]


@lru_cache(maxsize=2)
def starts(boundaries: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Where samples start and the row ends, and the longest; copied to the GPU once a row, not a layer."""
    longest = max(end - start for start, end in pairwise(boundaries))
    with torch.inference_mode(False):  # a later row with the same boundaries may be trained on
        return torch.tensor(boundaries, dtype=torch.int32, device=device), longest
