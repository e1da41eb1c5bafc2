"""Catalogue softmax, forward and backward, against the eager formula and cross-entropies in chunks.

Shape legend: N users, I items, D width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from kernel_ops.case import Case
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from recloom.kernels.catalog_softmax import catalog_softmax

TEMPERATURE = 0.07
CHUNK = 64
LARGEST_EAGER = 1 << 31
CPU_SHAPES = [(512, items, width) for width in (64, 128) for items in (3416, 20_000, 100_000)]
CUDA_SHAPES = [(8192, 100_000, 128), (8192, 1_000_000, 128)]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def cases(device: str) -> Iterator[Case]:
    """Every shape, with items frozen and trainable, against every peer that can run it."""
    on_cpu = device == "cpu"
    dtype = torch.float32 if on_cpu else torch.bfloat16
    for shape in CPU_SHAPES if on_cpu else CUDA_SHAPES:
        for trainable in (False, True):
            for peer, loss in peers(shape, device).items():
                yield case(peer, loss, shape, trainable, dtype, device)


def peers(shape: tuple[int, int, int], device: str) -> dict[str, Loss]:
    found: dict[str, Loss] = {"chunked cross-entropy": chunked}
    if shape[0] * shape[1] <= LARGEST_EAGER:
        found["eager"] = eager
    if device != "cpu" and importlib.util.find_spec("cut_cross_entropy"):
        found["cut-cross-entropy, unfiltered"] = cut
    return found


def eager(users_ND: Tensor, items_ID: Tensor, targets_N: Tensor) -> Tensor:
    logits_NI = F.normalize(users_ND, dim=1) @ F.normalize(items_ID, dim=1).T / TEMPERATURE
    return F.cross_entropy(logits_NI.float(), targets_N)


def chunked(users_ND: Tensor, items_ID: Tensor, targets_N: Tensor) -> Tensor:
    """Chunks of users, whose logits are computed again in the backward pass."""
    queries_ND, keys_ID = F.normalize(users_ND, dim=1) / TEMPERATURE, F.normalize(items_ID, dim=1)

    def chunk_loss(queries_BD: Tensor, targets_B: Tensor) -> Tensor:
        return F.cross_entropy((queries_BD @ keys_ID.T).float(), targets_B, reduction="sum")

    parts = zip(queries_ND.split(CHUNK), targets_N.split(CHUNK), strict=True)
    losses = [checkpoint(chunk_loss, left, right, use_reentrant=False) for left, right in parts]
    return torch.stack(losses).sum() / len(targets_N)


def cut(users_ND: Tensor, items_ID: Tensor, targets_N: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    queries_ND, keys_ID = F.normalize(users_ND, dim=1) / TEMPERATURE, F.normalize(items_ID, dim=1)
    return linear_cross_entropy(queries_ND, keys_ID, targets_N, filter_eps=None)


def ours(users_ND: Tensor, items_ID: Tensor, targets_N: Tensor) -> Tensor:
    return catalog_softmax(users_ND, items_ID, targets_N, TEMPERATURE)


def case(
    peer: str, loss: Loss, shape: tuple[int, int, int], trainable: bool, dtype: torch.dtype, device: str
) -> Case:
    users, items, width = shape
    generator = torch.Generator().manual_seed(0)
    users_ND = torch.randn(users, width, generator=generator).to(device, dtype).requires_grad_()
    items_ID = torch.randn(items, width, generator=generator).to(device, dtype).requires_grad_(trainable)
    targets_N = torch.randint(0, items, (users,), generator=generator).to(device)
    learnt = [users_ND, items_ID] if trainable else [users_ND]

    def step(of: Loss) -> tuple[Tensor, ...]:
        value = of(users_ND, items_ID, targets_N)
        return value.detach(), *torch.autograd.grad(value, learnt)

    # Read inputs and write gradients once.
    touched = sum(tensor.numel() for tensor in (users_ND, items_ID, *learnt)) * users_ND.element_size()
    return Case(
        op="catalog_softmax",
        peer=peer,
        shape=f"N={users} I={items} D={width}",
        dtype=str(dtype).removeprefix("torch."),
        ours=lambda: step(ours),
        theirs=lambda: step(loss),
        check=lambda: check(step(ours), step(loss), dtype),
        least_bytes=touched,
        labels={"items": "trainable" if trainable else "frozen", "pass": "forward and backward"},
    )


def check(left: tuple[Tensor, ...], right: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Loss and gradients differ by little beside the largest value."""
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for one, other in zip(left, right, strict=True):
        difference = (one.float() - other.float()).abs().max()
        assert difference <= tolerance * other.float().abs().max(), f"results differ by {difference}"
