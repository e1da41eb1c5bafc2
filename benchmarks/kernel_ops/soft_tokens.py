"""Soft tokens against the ways that models of Hugging Face and LLaVA build their input embeddings.

A sample has 16 shared rows before it, 4 after it and 4 vectors of its own inside; the table is
frozen. Positions, masks and the order of the rows are made before the timing for every side.

Shapes: B samples, U positions a sample, H width, V rows of the table, N soft rows, Q soft positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from kernel_ops.case import Case
from torch.nn import functional as F

from recloom.kernels.soft_layout import mark, surround_padded
from recloom.kernels.soft_tokens import soft_tokens

VOCABULARY, PREFIX, SUFFIX, INSIDE = 49152, 16, 4, 4
ON_CPU = tuple((8, 512, width, dtype) for dtype in (torch.float32, torch.bfloat16) for width in (576, 2048))
ON_GPU = ((64, 512, 4096, torch.bfloat16), (8, 512, 4096, torch.bfloat16))


@dataclass(frozen=True)
class Batch:
    """One batch and what each side needs of it beforehand."""

    source_BU: torch.Tensor
    table_VH: torch.Tensor
    rows_NH: torch.Tensor

    @property
    def ids_BU(self) -> torch.Tensor:
        return self.source_BU.clamp(min=0)

    @property
    def mask_BU(self) -> torch.Tensor:
        return self.source_BU < 0

    @property
    def order_Q(self) -> torch.Tensor:
        return -1 - self.source_BU[self.mask_BU]


def make_batch(device: str, samples: int, length: int, width: int, dtype: torch.dtype) -> Batch:
    """Rows 0.. are the prefix, then the suffix, then each sample's own vectors."""
    torch.manual_seed(0)
    tokens = length - PREFIX - SUFFIX
    ids_BT = torch.randint(0, VOCABULARY, (samples, tokens))
    slots_BT = torch.full_like(ids_BT, -1)
    own_BM = PREFIX + SUFFIX + torch.arange(samples * INSIDE).view(samples, INSIDE)
    slots_BT[:, 9 :: tokens // INSIDE][:, :INSIDE] = own_BM
    prefix_L, suffix_K = torch.arange(PREFIX), PREFIX + torch.arange(SUFFIX)
    longer = surround_padded(mark(ids_BT, slots_BT), torch.ones_like(ids_BT), prefix_L, suffix_K)
    table_VH = torch.randn(VOCABULARY, width, dtype=dtype, device=device)
    rows_NH = torch.randn(PREFIX + SUFFIX + samples * INSIDE, width, dtype=dtype, device=device)
    return Batch(longer.source_BU.to(device), table_VH, rows_NH.requires_grad_())


def hugging_face(batch: Batch) -> Callable[[], torch.Tensor]:
    """What its multimodal models do: placeholders looked up like tokens, then `masked_scatter`."""
    ids_BU, order_Q, mask_BU1 = batch.ids_BU, batch.order_Q, batch.mask_BU.unsqueeze(-1)

    def run() -> torch.Tensor:
        embeddings_BUH = F.embedding(ids_BU, batch.table_VH)
        rows_QH = batch.rows_NH.index_select(0, order_Q)
        return embeddings_BUH.masked_scatter(mask_BU1.expand_as(embeddings_BUH), rows_QH)

    return run


def hugging_face_around(batch: Batch) -> Callable[[], torch.Tensor]:
    """The same for the vectors inside; rows before and after joined by `torch.cat`, as PEFT does."""
    inside = slice(PREFIX, -SUFFIX)
    ids_BT, mask_BT1 = batch.ids_BU[:, inside].contiguous(), batch.mask_BU[:, inside].unsqueeze(-1)
    samples = len(ids_BT)

    def run() -> torch.Tensor:
        embeddings_BTH = F.embedding(ids_BT, batch.table_VH)
        prefix_LH, suffix_KH, own_MH = batch.rows_NH.split([PREFIX, SUFFIX, samples * INSIDE])
        filled_BTH = embeddings_BTH.masked_scatter(mask_BT1.expand_as(embeddings_BTH), own_MH)
        around = (prefix_LH.expand(samples, -1, -1), filled_BTH, suffix_KH.expand(samples, -1, -1))
        return torch.cat(around, 1)

    return run


def boolean_index_put(batch: Batch) -> Callable[[], torch.Tensor]:
    """`embeddings[mask] = rows`, in place: the table is frozen, so autograd allows it."""
    ids_BU, order_Q, mask_BU = batch.ids_BU, batch.order_Q, batch.mask_BU

    def run() -> torch.Tensor:
        embeddings_BUH = F.embedding(ids_BU, batch.table_VH)
        embeddings_BUH[mask_BU] = batch.rows_NH.index_select(0, order_Q)
        return embeddings_BUH

    return run


def concatenation(batch: Batch) -> Callable[[], torch.Tensor]:
    """LLaVA's way at its best: all tokens looked up at once, then one `torch.cat` of all pieces."""
    source = batch.source_BU.flatten()
    ids_T = source[source >= 0]
    order_Q = batch.order_Q
    kinds, lengths = torch.unique_consecutive((source < 0).cpu(), return_counts=True)
    soft_lengths, token_lengths = lengths[kinds].tolist(), lengths[~kinds].tolist()
    first = not bool(kinds[0])

    def run() -> torch.Tensor:
        tokens = F.embedding(ids_T, batch.table_VH).split(token_lengths)
        softs = batch.rows_NH.index_select(0, order_Q).split(soft_lengths)
        pieces: list[torch.Tensor] = []
        both = (tokens, softs) if first else (softs, tokens)
        for index in range(max(len(tokens), len(softs))):
            pieces += [part[index] for part in both if index < len(part)]
        return torch.cat(pieces).view(*batch.source_BU.shape, -1)

    return run


PEERS = {
    "hf masked_scatter": hugging_face,
    "hf masked_scatter + cat": hugging_face_around,
    "boolean index_put": boolean_index_put,
    "torch.cat": concatenation,
}


def gradient(out_BUH: torch.Tensor, rows_NH: torch.Tensor, grad_BUH: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(out_BUH, rows_NH, grad_BUH, retain_graph=True)[0]


def same(ours: Callable[[], torch.Tensor], theirs: Callable[[], torch.Tensor], tolerance: float) -> None:
    torch.testing.assert_close(ours(), theirs(), atol=tolerance, rtol=tolerance)


def cases(device: str) -> Iterator[Case]:
    """Forward, and backward with a frozen table, against each peer at each shape."""
    for samples, length, width, dtype in ON_GPU if device == "cuda" else ON_CPU:
        batch = make_batch(device, samples, length, width, dtype)
        ours = partial(soft_tokens, batch.source_BU, batch.table_VH, batch.rows_NH)
        out_BUH = ours()
        grad_BUH = torch.randn_like(out_BUH)
        back = partial(gradient, out_BUH, batch.rows_NH, grad_BUH)
        row_bytes = width * dtype.itemsize
        # Every position is read and written; backward reads the soft ones and writes the rows.
        bytes_forward = 2 * batch.source_BU.numel() * row_bytes
        bytes_backward = (len(batch.order_Q) + len(batch.rows_NH)) * row_bytes
        shape = f"B={samples} T={length} H={width} V={VOCABULARY}"
        name = str(dtype).removeprefix("torch.")
        loose = 1e-5 if dtype == torch.float32 else 0.1  # the peers sum a shared row's gradient in bf16
        for peer, make in PEERS.items():
            theirs = make(batch)
            check = partial(same, ours, theirs, 0.0)
            yield Case("soft_tokens forward", peer, shape, name, ours, theirs, check, bytes_forward)
            theirs_back = partial(gradient, theirs(), batch.rows_NH, grad_BUH)
            check = partial(same, back, theirs_back, loose)
            yield Case("soft_tokens backward", peer, shape, name, back, theirs_back, check, bytes_backward)
