"""Full-catalogue ranking and rating prediction with a fitted backbone, in chunks of users.

Shapes: B users, L history length, I items, k list length, N rating pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from recloom.trainer import metrics
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.data import NO_ITEM, pad_histories

SCORES_PER_CHUNK = 2_000_000
PAIRS_PER_CHUNK = 65_536


@torch.no_grad()
def masked_scores(
    backbone: Backbone,
    users_B: np.ndarray,
    histories: Sequence[np.ndarray],
    seen: Sequence[np.ndarray],
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a chunk and its scores over the catalogue, -inf for seen items; chunks bound the memory."""
    training = backbone.training
    backbone.eval()
    # a user's scores and hidden states; chunks of some MB are reused by malloc, larger ones fault in anew
    per_user = backbone.num_items + backbone.history_length * backbone.settings.embedding
    size = max(1, SCORES_PER_CHUNK // per_user)
    for start in range(0, len(users_B), size):
        rows = slice(start, min(start + size, len(users_B)))
        users_C = torch.as_tensor(np.asarray(users_B[rows], dtype=np.int64))
        histories_CL = pad_histories(histories[rows], backbone.history_length, backbone.num_items)
        scores_CI = backbone.score(users_C, histories_CL)
        lengths = torch.tensor([len(items) for items in seen[rows]])
        columns = np.concatenate([np.asarray(items, dtype=np.int64) for items in seen[rows]])
        scores_CI[
            torch.arange(len(lengths)).repeat_interleave(lengths), torch.from_numpy(columns)
        ] = -torch.inf
        yield rows, scores_CI
    backbone.train(training)


@torch.no_grad()
def user_vectors(backbone: Backbone, users_B: np.ndarray, histories: Sequence[np.ndarray]) -> Tensor:
    """The backbone's vectors (B, D) of users behind their histories, in chunks.

    In the backbone's present mode: with dropout on, the vectors are drawn.
    """
    size = max(1, SCORES_PER_CHUNK // max(1, backbone.history_length * backbone.settings.embedding))
    parts = []
    for start in range(0, max(1, len(users_B)), size):  # no users have vectors of a width too
        rows = slice(start, start + size)
        histories_CL = pad_histories(histories[rows], backbone.history_length, backbone.num_items)
        users_C = torch.as_tensor(np.asarray(users_B[rows], dtype=np.int64))
        parts.append(backbone.user_vectors(users_C, histories_CL))
    return torch.cat(parts)


def rank_topk(
    backbone: Backbone,
    users_B: np.ndarray,
    histories: Sequence[np.ndarray],
    seen: Sequence[np.ndarray],
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best unseen items of every user, best first: items_Bk (int64) and scores_Bk (float32).

    Row b of `histories` (items in time order) and `seen` (items to mask) belongs to users_B[b]. Equal
    scores keep the catalogue's order. Where fewer than k items are left, the item is NO_ITEM (-1) and
    the score -inf.
    """
    items_Bk = np.full((len(users_B), k), NO_ITEM, dtype=np.int64)
    scores_Bk = np.full((len(users_B), k), -np.inf, dtype=np.float32)
    for rows, scores_CI in masked_scores(backbone, users_B, histories, seen):
        best, order = torch.sort(scores_CI, dim=1, descending=True, stable=True)
        best, order = best[:, :k], order[:, :k].masked_fill(best[:, :k] == -torch.inf, NO_ITEM)
        items_Bk[rows, : order.shape[1]] = order.numpy()
        scores_Bk[rows, : best.shape[1]] = best.numpy()
    return items_Bk, scores_Bk


def target_ranks(
    backbone: Backbone,
    users_B: np.ndarray,
    histories: Sequence[np.ndarray],
    seen: Sequence[np.ndarray],
    targets_B: np.ndarray,
) -> np.ndarray:
    """The 1-based rank of each user's target among the unseen items of the full catalogue.

    Ties and nan scores count against the target. A target that is itself masked has rank inf.
    """
    ranks_B = np.empty(len(users_B))
    for rows, scores_CI in masked_scores(backbone, users_B, histories, seen):
        targets_C1 = torch.as_tensor(np.asarray(targets_B[rows], dtype=np.int64))[:, None]
        target_C1 = scores_CI.gather(1, targets_C1)
        not_below_CI = ~(scores_CI < target_C1) & (scores_CI != -torch.inf)
        ranks_C = not_below_CI.sum(1).double()
        ranks_B[rows] = ranks_C.masked_fill(target_C1[:, 0] == -torch.inf, torch.inf).numpy()
    return ranks_B


def evaluate_topk(
    backbone: Backbone,
    users_B: np.ndarray,
    histories: Sequence[np.ndarray],
    seen: Sequence[np.ndarray],
    targets_B: np.ndarray,
    ks: Sequence[int] = metrics.TOPK,
) -> dict[str, np.ndarray]:
    """H@k, N@k and MRR of the full-catalogue ranking, one value a user in the order of users_B."""
    return metrics.one_target_metrics(target_ranks(backbone, users_B, histories, seen, targets_B), ks)


@torch.no_grad()
def predict_ratings(backbone: Backbone, users_N: np.ndarray, items_N: np.ndarray) -> np.ndarray:
    """Predicted ratings in stars (float32), for a rating backbone."""
    training = backbone.training
    backbone.eval()
    chunks = [np.empty(0, dtype=np.float32)]
    for start in range(0, len(users_N), PAIRS_PER_CHUNK):
        rows = slice(start, start + PAIRS_PER_CHUNK)
        pairs = (torch.as_tensor(np.asarray(ids[rows], dtype=np.int64)) for ids in (users_N, items_N))
        chunks.append(backbone.predict_rating(*pairs).numpy())
    backbone.train(training)
    return np.concatenate(chunks)
