"""MixGCF: Huang et al. 2021, "MixGCF: An Improved Training Method for Graph Neural Network-based
Recommender Systems", on LightGCN.

Shapes: N triples, M candidate negatives, K convolutions, U users, I items, X distinct users of a batch,
C of a chunk's rows, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from recloom.trainer.collaborative.base import Batch, Task
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.graph import GraphBackbone, GraphSettings, mean
from recloom.trainer.collaborative.tasks import NegativeSampler, bpr_loss, epoch_order, epoch_triples

TASK: Task = "direct"
SCORES_PER_CHUNK = 2_000_000


class Settings(GraphSettings):
    model: str = "mixgcf"
    learning_rate: PositiveFloat = 1e-2
    weight_decay: NonNegativeFloat = 1e-3
    batch_size: PositiveInt = 8192
    layers: PositiveInt = 3
    candidates: PositiveInt = Field(default=16, description="negatives that one is mixed from")


class MixGCF(GraphBackbone):
    """LightGCN trained with BPR on a synthetic negative.

    Positive mixing (eq. 6) moves every candidate towards the positive, by a coefficient drawn for each
    layer; hop mixing (eqs. 7, 8) takes from each layer the candidate that the user scores highest, and
    the mean over the layers is the negative (eq. 9, LightGCN's pooling).

    16 candidates, not the paper's 64: on ML-100K's validation N@10 is 0.077 against 0.069 (one seed),
    where 64 overfit after 24 epochs.
    """

    settings: Settings

    def batches(self, data: TopKData, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of (users_N, positives_N, candidates_NM, mixed_N).

        mixed_N is False for the extra pairs of Llama4Rec's eq. (3): their one negative stays as it is.
        """
        sampler = NegativeSampler(data.sequences, data.num_items)
        triples_T3 = epoch_triples(data, sampler, rng)
        num_extra = 0 if data.extra_pairs is None else len(data.extra_pairs)
        num_sampled = len(triples_T3) - num_extra
        for rows in epoch_order(len(triples_T3), self.settings.batch_size, rng):
            users_N, positives_N, negatives_N = triples_T3[rows].T
            candidates_NM = np.repeat(negatives_N[:, None], self.settings.candidates, axis=1)
            mixed_N = rows < num_sampled
            drawn = sampler.sample(np.repeat(users_N[mixed_N], self.settings.candidates - 1), rng)
            candidates_NM[mixed_N, 1:] = drawn.reshape(mixed_N.sum(), -1)
            arrays = (users_N, positives_N, candidates_NM, mixed_N)
            yield tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)

    def loss(self, batch: Batch) -> Tensor:
        users_N, positives_N, candidates_NM, mixed_N = batch
        layers = [self.split(layer_VD) for layer_VD in self.layer_vectors([self.adjacency()] * self.layers)]
        users_UD = mean([users for users, _ in layers])
        users_ND = F.embedding(users_N, users_UD)
        chosen = self.hardest(users_UD, [items for _, items in layers], users_N, candidates_NM)
        share_KN1 = torch.rand(len(layers), len(users_N), 1) * mixed_N[:, None]
        positives = [F.embedding(positives_N, items_ID) for _, items_ID in layers]
        negatives = [
            share_N1 * positive_ND + (1 - share_N1) * F.embedding(chosen_N, items_ID)
            for share_N1, positive_ND, chosen_N, (_, items_ID) in zip(
                share_KN1, positives, chosen, layers, strict=True
            )
        ]
        positive_N = (users_ND * mean(positives)).sum(1)
        negative_N = (users_ND * mean(negatives)).sum(1)
        penalty = self.penalty((users_N, positives_N, chosen[0]))
        return bpr_loss(positive_N, negative_N) + self.settings.weight_decay * penalty

    @torch.no_grad()
    def hardest(
        self, users_UD: Tensor, item_layers: list[Tensor], users_N: Tensor, candidates_NM: Tensor
    ) -> list[Tensor]:
        """For each layer the candidates (N,) that maximise u . e' (eq. 8).

        The mixing coefficient and the positive are the same for all candidates of a row and layer, so
        the unmixed candidates have the same maximum. Scores are taken from products of the batch's
        distinct users with the catalogue, in chunks: far less work than one dot product a candidate.
        """
        users_X, row_N = users_N.unique(return_inverse=True)
        size = max(1, SCORES_PER_CHUNK // self.num_items)
        chosen_KN = torch.empty(len(item_layers), len(users_N), dtype=torch.int64)
        for start in range(0, len(users_X), size):
            users_CD = users_UD[users_X[start : start + size]]
            rows_C = ((row_N >= start) & (row_N < start + size)).nonzero()[:, 0]
            candidates_CM = candidates_NM[rows_C]
            places_CM = (row_N[rows_C] - start)[:, None] * self.num_items + candidates_CM
            for layer, items_ID in enumerate(item_layers):
                best_C1 = (users_CD @ items_ID.T).take(places_CM).argmax(1, keepdim=True)
                chosen_KN[layer, rows_C] = candidates_CM.gather(1, best_C1)[:, 0]
        return list(chosen_KN)
