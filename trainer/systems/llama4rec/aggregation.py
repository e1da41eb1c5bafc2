"""Adaptive aggregation, equations (5) to (7) of Llama4Rec (section 4.4).

Shapes: B users, U all users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recloom.data_shards.splits import Interactions

Alphas = tuple[float, float]


def long_tail_coefficient(num_interactions: np.ndarray) -> np.ndarray:
    """Eq. (5): log(N(u) + 1)."""
    return np.log(num_interactions + 1.0)


def llm_weight(
    coefficient: np.ndarray, low: float, high: float, alpha_1: float, alpha_2: float
) -> np.ndarray:
    """Eq. (7): max((l_max - l_u) / (l_max - l_min), alpha_2) * alpha_1; one value a user.

    Where all users are equally active the first term is taken as 0, so that alpha_2 decides.
    """
    span = high - low
    tail = np.zeros_like(coefficient) if span == 0 else (high - coefficient) / span
    return np.maximum(tail, alpha_2) * alpha_1


def position_utility(num_items: int, c: float) -> np.ndarray:
    """Section 4.4.2: -s * C for the positions s = 1 .. k'."""
    return -c * np.arange(1, num_items + 1)


def aggregate_rank(order: list[int], candidates: list[int], target: int, alpha: float, c: float) -> float:
    """The target's rank after eq. (6), inf when it is no candidate; ties count against it.

    order: the LLM's ranking of all candidates; candidates: the backbone's.
    """
    if target not in candidates:
        return np.inf
    utility = position_utility(len(candidates), c)
    llm = dict(zip(order, utility, strict=True))
    total = np.array(
        [alpha * llm[item] + (1 - alpha) * rec for item, rec in zip(candidates, utility, strict=True)]
    )
    return float((total >= total[candidates.index(target)] - 1e-12).sum())


@dataclass(frozen=True)
class Activity:
    """N(u) of every user in the training part, and the range of the coefficient over active users."""

    count_U: np.ndarray
    low: float
    high: float

    def weight(self, users_B: np.ndarray, alphas: Alphas) -> np.ndarray:
        return llm_weight(long_tail_coefficient(self.count_U[users_B]), self.low, self.high, *alphas)


def activity(train: Interactions, num_users: int) -> Activity:
    count_U = np.bincount(train.user_N, minlength=num_users)
    coefficient = long_tail_coefficient(count_U[count_U > 0])
    return Activity(count_U, float(coefficient.min()), float(coefficient.max()))


def best_alphas(values: dict[Alphas, float], largest: bool) -> tuple[Alphas, float]:
    """The best cell of the grid; the first one wins a tie, so equal cells keep the LLM's weight small."""
    sign = 1 if largest else -1
    best = max(values, key=lambda alphas: (sign * values[alphas], -alphas[0], -alphas[1]))
    return best, values[best]
