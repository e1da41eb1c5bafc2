"""The losses of Laser (Zhang et al. 2024, section 3.3.1, eq. 8-12), per user.

They are left per user so that a step whose users lie in several rows, on several ranks, can divide by the
number of users of the step.

Shapes: S users, I items, H width of the LLM, K experts.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from recloom.kernels.catalog_softmax import catalog_softmax
from recloom.trainer.systems.laser.bituning import BiTuningOutput
from recloom.trainer.systems.laser.router import RouterStatistics

BalanceOver = Literal["user", "row"]


class Losses(NamedTuple):
    """Each (S,): eq. 8, eq. 9 unweighted (zeros without an M-Former), and their sum, eq. 12."""

    contrastive_S: Tensor
    balance_S: Tensor
    total_S: Tensor


def laser_losses(
    output: BiTuningOutput,
    items_IH: Tensor,
    targets_S: Tensor,
    temperature: float,
    balance_weight: float,
    balance_over: BalanceOver = "user",
) -> Losses:
    """Equation 12. temperature: tau, 0.05 in the paper; balance_weight: lambda, 0.01 in the paper."""
    contrastive_S = contrastive_losses(output.states_SH, items_IH, targets_S, temperature)
    if output.router is None:
        return Losses(contrastive_S, contrastive_S.new_zeros(len(contrastive_S)), contrastive_S)
    balance_S = balance_losses(output.router, balance_over)
    return Losses(contrastive_S, balance_S, contrastive_S + balance_weight * balance_S)


def contrastive_losses(users_SH: Tensor, items_IH: Tensor, targets_S: Tensor, temperature: float) -> Tensor:
    """Equation 8: -log softmax of the next item among all items, over cosines / temperature, (S,).

    The items are constants: they are recomputed once an epoch in stage 1 and frozen in stage 2.
    """
    return catalog_softmax(users_SH, items_IH.detach(), targets_S, temperature, reduction="none")


def balance_losses(router: RouterStatistics, over: BalanceOver = "user") -> Tensor:
    """Equation 9, (S,): K times the sum over experts of f_j P_j.

    over: N of eq. 10 and 11 are one user's items, as written; or "row": f and P are means over all users
    given, as in Switch, and every user has the same loss.

    It is 1 where a user's items or scores are spread evenly and K where one expert has all; with K = 1 it is
    a constant. f_j counts, so the gradient comes through P_j = r_j only. N of eq. 10 and 11 are one user's
    items, so it evens each user's scores; that users go to different experts follows only where their states
    differ more than they have in common, which is why M-Former wants states with the mean taken out.
    """
    dispatched_BK, scores_BK = router.dispatched_BK, router.scores_BK
    if over == "row":
        dispatched_BK = dispatched_BK.mean(0, keepdim=True).expand_as(dispatched_BK)
        scores_BK = scores_BK.mean(0, keepdim=True).expand_as(scores_BK)
    return scores_BK.shape[1] * (dispatched_BK * scores_BK).sum(1)
