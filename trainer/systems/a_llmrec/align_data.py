"""What stage 1 of A-LLMRec learns from: targets, the recommender's states before them, texts, batches.

Shapes: S sequences trained on, T all their targets, B sequences of a step, N targets of a step, L the most
targets of a sequence, I items, X distinct items of a step, D width of the recommender, W of the text
embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recloom.data_shards.errors import UserError
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.evaluate import user_vectors
from recloom.trainer.collaborative.tasks import NegativeSampler, epoch_order
from recloom.trainer.sentence_encoder import SentenceEncoder
from recloom.trainer.systems.a_llmrec.settings import AlignBlock


@dataclass(frozen=True)
class Examples:
    """The targets, sequence by sequence and there in time order.

    user_T, item_T: whose they are and which. place_T: where the target stands in its user's sequence.
    count_S: targets of each sequence.
    """

    user_T: np.ndarray
    item_T: np.ndarray
    place_T: np.ndarray
    count_S: np.ndarray

    @classmethod
    def make(cls, sequences: list[np.ndarray], num_items: int, settings: AlignBlock, seed: int) -> Self:
        """The last item of each sequence, or all but the first (section 5.4.2)."""
        users_S = training_users(sequences, num_items, settings.users, seed)
        lengths = [len(sequences[user]) for user in users_S]
        starts = [length - 1 if settings.targets == "last" else 1 for length in lengths]
        items = [sequences[user][start:] for user, start in zip(users_S, starts, strict=True)]
        count_S = np.array([len(part) for part in items])
        places = [np.arange(start, length) for start, length in zip(starts, lengths, strict=True)]
        item_T = np.concatenate(items).astype(np.int64)
        return cls(users_S.repeat(count_S), item_T, np.concatenate(places), count_S)


def training_users(sequences: list[np.ndarray], num_items: int, count: int | None, seed: int) -> np.ndarray:
    """Users with an item before the last and with an item left for a negative, or a sample of `count`."""
    fits = [len(items) > 1 and len(np.unique(items)) < num_items for items in sequences]
    users_S = np.flatnonzero(fits).astype(np.int64)
    if len(users_S) == 0:
        raise UserError(
            "align: no user has two training items and one item left as a negative: "
            "use users with more interactions."
        )
    if count is None or count >= len(users_S):
        return users_S
    return np.sort(np.random.default_rng([seed, 0]).choice(users_S, count, replace=False))


@dataclass(frozen=True)
class AlignBatch:
    """B sequences: mask_BL has N True places, in the order of the targets rows_N and their negatives_N."""

    mask_BL: Tensor
    rows_N: np.ndarray
    negatives_N: np.ndarray


def epoch_batches(
    examples: Examples, sampler: NegativeSampler, batch_size: int, seed: int, epoch: int
) -> Iterator[AlignBatch]:
    """One epoch, counted from 1, in an order and with negatives that (seed, epoch) settle."""
    rng = np.random.default_rng([seed, epoch])
    negative_T = sampler.sample(examples.user_T, rng)
    end_S = np.cumsum(examples.count_S)
    for batch_B in epoch_order(len(end_S), batch_size, rng):
        count_B = examples.count_S[batch_B]
        rows_N = np.concatenate([np.arange(end_S[s] - examples.count_S[s], end_S[s]) for s in batch_B])
        mask_BL = torch.from_numpy(np.arange(count_B.max()) < count_B[:, None])
        yield AlignBatch(mask_BL, rows_N, negative_T[rows_N])


class States:
    """x of section 4.1.2: what the recommender makes of a user's items before the target.

    Each target's history is a row of its own, which `user_vectors` takes as at inference. The states that
    `encode` has inside a sequence differ from that: positions count from the right, and BERT4Rec sees
    later items. Without dropout all states (T, D) are computed once.
    """

    def __init__(
        self, backbone: Backbone, sequences: list[np.ndarray], examples: Examples, dropout: bool
    ) -> None:
        self.backbone, self.sequences, self.examples = backbone, sequences, examples
        # the vectors of a direct backbone know no dropout
        is_drawn = dropout and backbone.history_length > 0
        self.kept_TD = None if is_drawn else self.compute(np.arange(len(examples.user_T)))

    def of(self, rows_N: np.ndarray) -> Tensor:
        """The states (N, D) before the targets `rows_N`, on the CPU."""
        if self.kept_TD is None:
            return self.compute(rows_N)
        return self.kept_TD[torch.from_numpy(rows_N)]

    def compute(self, rows_N: np.ndarray) -> Tensor:
        users_N, places_N = self.examples.user_T[rows_N], self.examples.place_T[rows_N]
        histories = [self.sequences[user][:place] for user, place in zip(users_N, places_N, strict=True)]
        return user_vectors(self.backbone, users_N, histories)


class TextVectors:
    """Q of section 4.1: items' texts through the sentence encoder, once up front where it is frozen."""

    def __init__(self, encoder: SentenceEncoder, texts: list[str]) -> None:
        self.encoder, self.texts = encoder, texts
        self.kept_IW = encoder.encode(texts) if encoder.frozen else None

    def of(self, items_N: Tensor) -> Tensor:
        """Embeddings (N, W) of items, each distinct one encoded once; the gradient reaches the encoder."""
        if self.kept_IW is not None:
            return self.kept_IW[items_N.to(self.kept_IW.device)]
        items_X, row_N = torch.unique(items_N, return_inverse=True)
        text_XW = self.encoder.encode([self.texts[item] for item in items_X.tolist()])
        # F.embedding, not indexing: its backward is deterministic on several threads
        return F.embedding(row_N.to(text_XW.device), text_XW)

    @torch.no_grad()
    def all(self) -> Tensor:
        """Embeddings (I, W) of the catalogue, in the encoder's present mode."""
        return self.encoder.encode(self.texts) if self.kept_IW is None else self.kept_IW
