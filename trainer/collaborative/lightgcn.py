"""LightGCN: He et al. 2020, "LightGCN: Simplifying and Powering Graph Convolution Network".

Shapes: U users, I items, V = U + I nodes, E distinct training edges, D embedding width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import BackboneSettings, Sizes, Task
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.tasks import DirectBackbone

TASK: Task = "direct"


class Settings(BackboneSettings):
    model: str = "lightgcn"
    learning_rate: PositiveFloat = 1e-2
    weight_decay: NonNegativeFloat = 1e-3
    batch_size: PositiveInt = 8192
    layers: int = Field(default=2, ge=1, description="graph convolutions")


class SymmetricProduct(torch.autograd.Function):
    """A @ X for a constant symmetric sparse A: the gradient is A @ dY, no transpose is made."""

    @staticmethod
    def forward(ctx: Any, adjacency_VV: Tensor, vectors_VD: Tensor) -> Tensor:
        ctx.adjacency_VV = adjacency_VV
        return torch.sparse.mm(adjacency_VV, vectors_VD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, torch.sparse.mm(ctx.adjacency_VV, gradients[0])


class LightGCN(DirectBackbone):
    """Final vectors are the mean over layers 0..K of the propagated embeddings (eqs. 3, 4, 7)."""

    edges_2E: Tensor

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
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
        """D^-1/2 A D^-1/2 of the user-item graph, sparse (V, V), without self-loops (eqs. 6, 8)."""
        if self.cached_adjacency is None:
            users_E, items_E = self.edges_2E[0], self.edges_2E[1] + self.num_users
            num_nodes = self.num_users + self.num_items
            ends_2F = torch.stack([torch.cat([users_E, items_E]), torch.cat([items_E, users_E])])
            degree_V = torch.bincount(ends_2F[0], minlength=num_nodes).to(self.nodes.weight.dtype)
            value_F = (degree_V[ends_2F[0]] * degree_V[ends_2F[1]]).rsqrt()
            adjacency_VV = torch.sparse_coo_tensor(
                ends_2F, value_F, (num_nodes, num_nodes), check_invariants=False
            )
            self.cached_adjacency = adjacency_VV.coalesce()
        return self.cached_adjacency

    def ego_vectors(self) -> tuple[Tensor, Tensor]:
        return self.nodes.weight[: self.num_users], self.nodes.weight[self.num_users :]

    def all_vectors(self) -> tuple[Tensor, Tensor]:
        layer_VD, total_VD = self.nodes.weight, self.nodes.weight
        for _ in range(self.layers):
            layer_VD = SymmetricProduct.apply(self.adjacency(), layer_VD)
            total_VD = total_VD + layer_VD
        final_VD = total_VD / (self.layers + 1)
        return final_VD[: self.num_users], final_VD[self.num_users :]
