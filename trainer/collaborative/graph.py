"""What LightGCN, MixGCF and SGL share: the user-item graph, its normalised adjacency, propagation.

Shapes: U users, I items, V = U + I nodes, E distinct training edges, G = 2E directed edges, D
embedding width.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import BackboneSettings, Sizes
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.tasks import DirectBackbone


class GraphSettings(BackboneSettings):
    """What every backbone on the graph can set."""

    layers: PositiveInt = Field(default=2, description="graph convolutions")


class SymmetricProduct(torch.autograd.Function):
    """A @ X for a constant symmetric sparse A (CSR): the gradient is A @ dY, no transpose is made.

    Naming the reduction picks the row-wise product, in a fifth of the time of the coordinate one.
    """

    @staticmethod
    def forward(ctx: Any, adjacency_VV: Tensor, vectors_VD: Tensor) -> Tensor:
        ctx.adjacency_VV = adjacency_VV
        return torch.sparse.mm(adjacency_VV, vectors_VD, "sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, torch.sparse.mm(ctx.adjacency_VV, gradients[0].contiguous(), "sum")


def normalised_adjacency(edges_2E: Tensor, num_users: int, num_items: int, dtype: torch.dtype) -> Tensor:
    """D^-1/2 A D^-1/2 of the user-item graph, CSR (V, V), no self-loops (He et al. 2020, eqs. 6, 8)."""
    users_E, items_E = edges_2E[0], edges_2E[1] + num_users
    num_nodes = num_users + num_items
    ends_2G = torch.stack([torch.cat([users_E, items_E]), torch.cat([items_E, users_E])])
    degree_V = torch.bincount(ends_2G[0], minlength=num_nodes).to(dtype)
    value_G = (degree_V[ends_2G[0]] * degree_V[ends_2G[1]]).rsqrt()
    order_G = (ends_2G[0] * num_nodes + ends_2G[1]).argsort()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            F.pad(degree_V.long().cumsum(0), (1, 0)),
            ends_2G[1][order_G],
            value_G[order_G],
            (num_nodes, num_nodes),
            check_invariants=False,
        )


class GraphBackbone(DirectBackbone):
    """Vectors are the mean over layers 0..K of the propagated embeddings (He et al. 2020, eqs. 3, 4, 7)."""

    edges_2E: Tensor

    def __init__(self, settings: GraphSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.layers = settings.layers
        self.nodes = nn.Embedding(self.num_users + self.num_items, settings.embedding)
        nn.init.normal_(self.nodes.weight, std=0.1)
        self.register_buffer("edges_2E", torch.zeros(2, sizes["num_edges"], dtype=torch.int64))
        self.cached_adjacency: Tensor | None = None

    @classmethod
    def sizes_of(cls, data: TopKData) -> Sizes:
        return {**super().sizes_of(data), "num_edges": sum(len(np.unique(s)) for s in data.sequences)}

    def attach(self, data: TopKData) -> None:
        items = [np.unique(sequence).astype(np.int64) for sequence in data.sequences]
        users_E = np.repeat(np.arange(data.num_users), [len(s) for s in items])
        self.edges_2E.copy_(torch.from_numpy(np.stack([users_E, np.concatenate(items)])))

    def adjacency(self) -> Tensor:
        """The whole training graph's normalised adjacency, made once."""
        if self.cached_adjacency is None:
            self.cached_adjacency = self.adjacency_of(self.edges_2E)
        return self.cached_adjacency

    def adjacency_of(self, edges_2E: Tensor) -> Tensor:
        return normalised_adjacency(edges_2E, self.num_users, self.num_items, self.nodes.weight.dtype)

    def ego_vectors(self) -> tuple[Tensor, Tensor]:
        return self.split(self.nodes.weight)

    def all_vectors(self) -> tuple[Tensor, Tensor]:
        return self.vectors([self.adjacency()] * self.layers)

    def vectors(self, adjacencies: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Final vectors of all users and all items, with one adjacency a convolution."""
        return self.split(mean(self.layer_vectors(adjacencies)))

    def layer_vectors(self, adjacencies: list[Tensor]) -> list[Tensor]:
        """The nodes' vectors (V, D) of layers 0..K."""
        layers = [self.nodes.weight]
        for adjacency_VV in adjacencies:
            layers.append(SymmetricProduct.apply(adjacency_VV, layers[-1]))
        return layers

    def split(self, vectors_VD: Tensor) -> tuple[Tensor, Tensor]:
        """The users' rows and the items' rows."""
        return vectors_VD[: self.num_users], vectors_VD[self.num_users :]


def mean(layers: list[Tensor]) -> Tensor:
    return sum(layers[1:], start=layers[0]) / len(layers)
