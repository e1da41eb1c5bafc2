"""The router of M-Former: which query expert takes a user (Zhang et al. 2024, section 3.2.1).

Shapes: B users, N items of the longest history, D width of the recommender, K experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloom.kernels.soft_layout import require


class RouterStatistics(NamedTuple):
    """What the router made of a batch. A tuple, because ZeRO-3 looks for tensors in tuples only.

    scores_BK: r_j(u) of eq. 7, which is also P_j of eq. 11; each row sums to 1, and it has the gradient.
    dispatched_BK: f_j of eq. 10, the share of a user's items whose best expert is j; no gradient.
    chosen_B: int64, the expert with the highest score, the first of equal ones.
    """

    scores_BK: Tensor
    dispatched_BK: Tensor
    chosen_B: Tensor


class Router(nn.Module):
    """A linear layer without bias (eq. 5), a softmax over experts for each item, the mean over items."""

    def __init__(self, recommender_width: int, experts: int) -> None:
        super().__init__()
        self.weight_KD = nn.Parameter(torch.empty(experts, recommender_width))
        nn.init.normal_(self.weight_KD, std=recommender_width**-0.5)

    def forward(self, C_BND: Tensor, mask_BN: Tensor) -> RouterStatistics:
        """Equations 5-7 and 10 over the real items.

        Computed in float32 at least, as in Switch: bfloat16 rounds close scores to the same number.

        Args:
            C_BND: the recommender's states, finite at padding too.
            mask_BN: bool, True at real items.

        Raises:
            ValueError: a user without a real item; asserted by the device on a GPU.
        """
        wide = torch.promote_types(self.weight_KD.dtype, torch.float32)
        real_BN1 = mask_BN[:, :, None]
        counts_B1 = mask_BN.sum(1, keepdim=True)
        require((counts_B1 > 0).all(), "mask_BN: each user needs at least one real item, leave others out.")
        p_BNK = F.linear(C_BND.to(wide), self.weight_KD.to(wide)).softmax(2)
        scores_BK = (p_BNK * real_BN1).sum(1) / counts_B1
        best_BNK = F.one_hot(p_BNK.argmax(2), p_BNK.shape[2])
        dispatched_BK = (best_BNK * real_BN1).sum(1) / counts_B1
        return RouterStatistics(scores_BK, dispatched_BK.to(wide), scores_BK.argmax(1))
