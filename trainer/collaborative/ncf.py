"""NCF (NeuMF): He et al. 2017, "Neural Collaborative Filtering".

Shapes: N examples of a batch, K negatives an example, U users, I items, B users of a query, C and J users
and items of a chunk, E embedding width, D = 2E width of the vectors, H width of the MLP's first layer, T of
its last one, X of any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recloom.trainer.collaborative.base import BackboneSettings, Batch, Sizes, Task
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.collaborative.fields import hidden_layers
from recloom.trainer.collaborative.tasks import DirectBackbone, NegativeSampler, epoch_order, epoch_triples

TASK: Task = "direct"
HIDDEN_PER_CHUNK = 1_000_000
"""4 MB: the most numbers in a hidden layer of the pairs of users and items that `score` holds at once."""


class Settings(BackboneSettings):
    model: str = "ncf"
    embedding: PositiveInt = Field(
        default=64, description="width of GMF's and of MLP's embeddings; the vectors are twice as wide"
    )
    learning_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 3e-2
    batch_size: PositiveInt = 2048
    patience: PositiveInt = 10
    negatives: PositiveInt = Field(default=4, description="unobserved items that go with a training item")
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        default=(64, 32, 16), description="widths of MLP's layers"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="after each of MLP's layers")


class NCF(DirectBackbone):
    """Score = h . [p_G * q_G, MLP(p_M, q_M)] (eq. 12, before the sigmoid, which keeps the order).

    The vector of a user or an item is its GMF embedding followed by its MLP embedding, (U, 2E) and (I, 2E).
    Other than in the other direct backbones, the score is not their dot product.

    The loss is the paper's (eq. 7), not BPR; on ML-100K's validation they differ little, N@10 0.066 and
    0.065 (one seed). All weights start at random, without the paper's pre-training of GMF and MLP.
    """

    settings: Settings

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        width = settings.embedding
        self.users = nn.Embedding(self.num_users, 2 * width)
        self.items = nn.Embedding(self.num_items, 2 * width)
        self.first = nn.Linear(2 * width, settings.hidden[0])
        above = hidden_layers(settings.hidden, settings.dropout)
        self.above = nn.Sequential(nn.ReLU(), nn.Dropout(settings.dropout), *above)
        self.output = nn.Linear(width + settings.hidden[-1], 1, bias=False)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.1)

    def ego_vectors(self) -> tuple[Tensor, Tensor]:
        return self.users.weight, self.items.weight

    def all_vectors(self) -> tuple[Tensor, Tensor]:
        return self.ego_vectors()

    def batches(self, data: TopKData, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches of (users_N, positives_N, negatives_NK, sampled_N).

        sampled_N is False for the extra pairs of Llama4Rec's eq. (3): their one negative stays as it is.
        """
        sampler = NegativeSampler(data.sequences, data.num_items)
        triples_T3 = epoch_triples(data, sampler, rng)
        num_extra = 0 if data.extra_pairs is None else len(data.extra_pairs)
        num_sampled = len(triples_T3) - num_extra
        for rows in epoch_order(len(triples_T3), self.settings.batch_size, rng):
            users_N, positives_N, negatives_N = triples_T3[rows].T
            negatives_NK = np.repeat(negatives_N[:, None], self.settings.negatives, axis=1)
            sampled_N = rows < num_sampled
            drawn = sampler.sample(np.repeat(users_N[sampled_N], self.settings.negatives - 1), rng)
            negatives_NK[sampled_N, 1:] = drawn.reshape(sampled_N.sum(), -1)
            arrays = (users_N, positives_N, negatives_NK, sampled_N)
            yield tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)

    def loss(self, batch: Batch) -> Tensor:
        """Eq. (7) for each training pair with its negatives, BPR's term for an extra pair; their mean.

        An extra pair tells an order, not that its first item was observed.
        """
        users_N, positives_N, negatives_NK, sampled_N = batch
        users_ND = self.users(users_N)
        positive_N = self.pair_scores(users_ND, self.items(positives_N))
        negative_NK = self.pair_scores(users_ND[:, None], self.items(negatives_NK))
        log_loss_N = F.softplus(-positive_N) + F.softplus(negative_NK).sum(1)
        order_loss_N = F.softplus(negative_NK[:, 0] - positive_N)
        penalty = self.penalty((users_N, positives_N, negatives_NK.flatten()))
        return torch.where(sampled_N, log_loss_N, order_loss_N).mean() + self.settings.weight_decay * penalty

    def pair_scores(self, users_XD: Tensor, items_XD: Tensor) -> Tensor:
        """Eq. (12) for pairs, of the shape that the leading dimensions broadcast to."""
        users_XD, items_XD = torch.broadcast_tensors(users_XD, items_XD)
        (user_gmf_XE, user_mlp_XE), (item_gmf_XE, item_mlp_XE) = users_XD.chunk(2, -1), items_XD.chunk(2, -1)
        deep_XT = self.above(self.first(torch.cat([user_mlp_XE, item_mlp_XE], -1)))
        return self.output(torch.cat([user_gmf_XE * item_gmf_XE, deep_XT], -1))[..., 0]

    def score(self, users_B: Tensor, histories_BL: Tensor) -> Tensor:
        """Eq. (12) for the full catalogue (B, I), in chunks of users and items (HIDDEN_PER_CHUNK).

        GMF is one product of matrices. MLP's first layer is a sum of the user's and the item's parts, so
        only adding them up and the layers above are done for each pair.
        """
        width, hidden = self.settings.embedding, self.settings.hidden
        (user_gmf_BE, user_mlp_BE), (item_gmf_IE, item_mlp_IE) = (
            table_XD.chunk(2, 1) for table_XD in (self.users(users_B), self.items.weight)
        )
        gmf_E, mlp_T = self.output.weight[0].split([width, hidden[-1]])
        user_BH = user_mlp_BE @ self.first.weight[:, :width].T
        item_IH = F.linear(item_mlp_IE, self.first.weight[:, width:], self.first.bias)
        columns = max(1, min(self.num_items, HIDDEN_PER_CHUNK // max(hidden)))
        rows = max(1, HIDDEN_PER_CHUNK // (columns * max(hidden)))
        deep = [
            torch.cat(
                [self.above(user_CH[:, None] + item_JH) @ mlp_T for item_JH in item_IH.split(columns)], 1
            )
            for user_CH in user_BH.split(rows)
        ]
        return (user_gmf_BE * gmf_E) @ item_gmf_IE.T + torch.cat(deep)
