"""SGL: Wu et al. 2021, "Self-supervised Graph Learning for Recommendation", on LightGCN.

Shapes: N triples, E edges, U users, I items, V = U + I nodes, X distinct nodes of a batch, D embedding
width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from recloom.trainer.collaborative.base import Batch, Task
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.graph import GraphBackbone, GraphSettings
from recloom.trainer.collaborative.softmax import softmax_loss

TASK: Task = "direct"


class Settings(GraphSettings):
    model: str = "sgl"
    learning_rate: PositiveFloat = 1e-2
    weight_decay: NonNegativeFloat = 1e-2
    batch_size: PositiveInt = 8192
    operator: Literal["ED", "ND", "RW"] = Field(
        default="ED", description="what a view drops: edges, nodes, or other edges in each layer"
    )
    drop: float = Field(default=0.1, ge=0, lt=1, description="share of edges or nodes that a view drops")
    contrast_weight: NonNegativeFloat = Field(default=0.1, description="of the contrastive loss (lambda_1)")
    temperature: PositiveFloat = Field(default=0.2, description="of the contrastive loss (tau)")


class SGL(GraphBackbone):
    """LightGCN with BPR, and two views of the graph that should agree on every node (eq. 13).

    Every epoch draws two views by dropping nodes (eq. 5), edges (eq. 6), or other edges in every layer
    (eq. 7). A view's degrees are its own. The contrast is among the batch's distinct users and distinct
    positive items, not among all nodes.
    """

    settings: Settings

    def batches(self, data: TopKData, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of (users_N, positives_N, negatives_N), then each view's adjacency of every layer."""
        views = [adjacency_VV for _ in range(2) for adjacency_VV in self.view(rng)]
        for triples in super().batches(data, rng):
            yield (*triples, *views)

    def view(self, rng: np.random.Generator) -> list[Tensor]:
        """One view's adjacency, sparse (V, V), of every layer."""
        if self.settings.operator == "RW":
            return [self.adjacency_of(self.kept_edges(rng)) for _ in range(self.layers)]
        return [self.adjacency_of(self.kept_edges(rng))] * self.layers

    def kept_edges(self, rng: np.random.Generator) -> Tensor:
        users_E, items_E = self.edges_2E.numpy()
        if self.settings.operator == "ND":
            node_V = rng.random(self.num_users + self.num_items) >= self.settings.drop
            kept_E = node_V[users_E] & node_V[items_E + self.num_users]
        else:
            kept_E = rng.random(len(users_E)) >= self.settings.drop
        return self.edges_2E[:, torch.from_numpy(kept_E)]

    def loss(self, batch: Batch) -> Tensor:
        """Eq. (13): BPR, the contrast weighed by lambda_1, the L2 penalty."""
        triples, views = batch[:3], batch[3:]
        users_UD, items_ID = self.vectors(list(views[: self.layers]))
        others_UD, others_ID = self.vectors(list(views[self.layers :]))
        contrast = self.contrast(users_UD, others_UD, triples[0])
        contrast = contrast + self.contrast(items_ID, others_ID, triples[1])
        return super().loss(triples) + self.settings.contrast_weight * contrast

    def contrast(self, first_VD: Tensor, second_VD: Tensor, nodes_N: Tensor) -> Tensor:
        """InfoNCE over cosines (eq. 10): a node's two views against the other nodes' second views."""
        nodes_X = nodes_N.unique()
        first_XD, second_XD = (
            F.normalize(F.embedding(nodes_X, vectors_VD), dim=1) for vectors_VD in (first_VD, second_VD)
        )
        return softmax_loss(first_XD / self.settings.temperature, second_XD, torch.arange(len(nodes_X)))
