"""Full ranking: lists and ranks of the targets without what is seen, against torch in chunks and faiss.

Shape legend: N users, B users of a chunk, I items, D width, K places, P items seen by all users together.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from kernel_ops.case import Case
from torch import Tensor

from recloom.kernels.full_rank import full_rank

K = 20
SEEN = 100
CPU_SHAPES = [(1024, items, 64) for items in (3416, 20_000, 100_000)]
CUDA_SHAPES = [(1024, 100_000, 128), (1024, 1_000_000, 128)]
# The fastest of 16, 32, 64, 128 and 256 at most sizes on a CPU; on a GPU what fits 2 GiB.
CPU_CHUNK = 64
CUDA_CHUNK_ELEMENTS = 1 << 29


@dataclass(frozen=True)
class Problem:
    users_ND: Tensor
    items_ID: Tensor
    offsets_N1: Tensor
    seen_P: Tensor
    targets_N: Tensor


def cases(device: str) -> Iterator[Case]:
    on_cpu = device == "cpu"
    peers: dict[str, Callable[[Problem], Any]] = {"torch chunks": torch_chunks}
    if on_cpu and importlib.util.find_spec("faiss"):
        peers["faiss flat"] = faiss_flat
    for shape in CPU_SHAPES if on_cpu else CUDA_SHAPES:
        for peer, rank in peers.items():
            yield case(peer, rank, drawn(shape, device))


def drawn(shape: tuple[int, int, int], device: str) -> Problem:
    users, items, width = shape
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    seen_NP = torch.stack([torch.randperm(items, generator=generator)[:SEEN] for _ in range(users)])
    targets_N = torch.randint(0, items, (users,), generator=generator)
    # A target is never seen, as in an evaluation.
    seen_NP = torch.where(seen_NP == targets_N[:, None], seen_NP.roll(1, 1), seen_NP).sort(1).values
    return Problem(
        torch.randn(users, width, generator=generator).to(device, dtype),
        torch.randn(items, width, generator=generator).to(device, dtype),
        torch.arange(0, seen_NP.numel() + 1, SEEN).to(device),
        seen_NP.flatten().to(device),
        targets_N.to(device),
    )


def ours(problem: Problem) -> tuple[Tensor | None, ...]:
    seen = (problem.offsets_N1, problem.seen_P)
    return tuple(full_rank(problem.users_ND, problem.items_ID, K, seen, problem.targets_N))


def torch_chunks(problem: Problem) -> tuple[Tensor, ...]:
    """All scores of a chunk of users, -inf at what is seen, topk, and a comparison for the ranks."""
    items = len(problem.items_ID)
    size = CPU_CHUNK if not problem.items_ID.is_cuda else max(1, CUDA_CHUNK_ELEMENTS // items)
    parts = [chunk_of(problem, start, size) for start in range(0, len(problem.users_ND), size)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def chunk_of(problem: Problem, start: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    scores_BI = (problem.users_ND[start : start + size] @ problem.items_ID.T).float()
    rows_P = torch.arange(len(scores_BI), device=scores_BI.device).repeat_interleave(SEEN)
    left_out_P = problem.seen_P[start * SEEN : start * SEEN + len(rows_P)]
    scores_BI[rows_P, left_out_P] = -math.inf
    bar_B1 = scores_BI.gather(1, problem.targets_N[start : start + size, None])
    ranks_B = (scores_BI >= bar_B1).sum(1) - 1
    top = scores_BI.topk(K, dim=1)
    return top.indices, top.values, ranks_B


def faiss_flat(problem: Problem) -> tuple[Tensor, Tensor, None]:
    """No mask and no ranks: so many more are asked for as a user has seen, then these are dropped."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(problem.items_ID.shape[1])
    index.add(problem.items_ID.numpy())
    values, ids = (
        torch.from_numpy(found)
        for found in index.search(problem.users_ND.numpy(), min(K + SEEN, index.ntotal))
    )
    seen_NP = problem.seen_P.view(-1, SEEN)
    places = torch.searchsorted(seen_NP, ids).clamp_max(SEEN - 1)
    left_out = seen_NP.gather(1, places) == ids
    order = left_out.long().sort(dim=1, stable=True).indices[:, :K]
    return ids.gather(1, order), values.gather(1, order), None


def case(peer: str, rank: Callable[[Problem], Any], problem: Problem) -> Case:
    (users, width), items = problem.users_ND.shape, len(problem.items_ID)
    # Read the inputs once, write lists and ranks once.
    read = sum(
        tensor.numel() * tensor.element_size()
        for tensor in (problem.users_ND, problem.items_ID, problem.seen_P, problem.targets_N)
    )
    return Case(
        op="full_rank",
        peer=peer,
        shape=f"N={users} I={items} D={width}",
        dtype=str(problem.users_ND.dtype).removeprefix("torch."),
        ours=lambda: ours(problem),
        theirs=lambda: rank(problem),
        check=lambda: check(ours(problem), rank(problem)),
        least_bytes=read + users * (12 * K + 8),
        labels={"k": str(K), "seen": f"{SEEN} a user"},
    )


def check(left: tuple[Any, ...], right: tuple[Any, ...]) -> None:
    """Equal scores in the lists, and ranks, up to what another order of summing may swap."""
    torch.testing.assert_close(left[1], right[1], atol=2e-2 if left[1].is_cuda else 1e-4, rtol=1e-2)
    if right[2] is not None:
        near = (left[2] - right[2]).abs() <= 1 + right[2] // (100 if left[1].is_cuda else 10_000)
        assert bool(near.all()), "ranks differ"
