"""LightGCN: He et al. 2020, "LightGCN: Simplifying and Powering Graph Convolution Network"."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from recloom.trainer.collaborative.base import Task
from recloom.trainer.collaborative.graph import GraphBackbone, GraphSettings

TASK: Task = "direct"


class Settings(GraphSettings):
    model: str = "lightgcn"
    learning_rate: PositiveFloat = 1e-2
    weight_decay: NonNegativeFloat = 1e-3
    batch_size: PositiveInt = 8192


class LightGCN(GraphBackbone):
    """The propagation of `GraphBackbone` (eqs. 3, 4, 7), trained with BPR (eq. 15)."""
