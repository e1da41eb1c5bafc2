"""CL4SRec: Xie et al. 2022, "Contrastive Learning for Sequential Recommendation".

Shapes: B sequences, L length, D embedding width, I items, V = 2B views; n counts a row's items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from recloom.trainer.collaborative.base import Batch, Sizes, Task
from recloom.trainer.collaborative.transformer import TransformerBackbone, TransformerSettings

TASK: Task = "sequential"


class Settings(TransformerSettings):
    model: str = "cl4srec"
    learning_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 1e-5
    batch_size: PositiveInt = 64
    augmentation: float = Field(
        default=0.5, gt=0, lt=1, description="share of items that crop keeps, mask hides, reorder shuffles"
    )
    contrast_weight: NonNegativeFloat = Field(default=0.05, description="of the contrastive loss (lambda)")


class CL4SRec(TransformerBackbone):
    """SASRec's loss plus a contrastive one on two augmented views of each sequence (eqs. 2, 12)."""

    own_tokens = 1

    def __init__(self, settings: Settings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.share, self.contrast_weight = settings.augmentation, settings.contrast_weight
        self.mask_token = self.num_items + 1

    def loss(self, batch: Batch) -> Tensor:
        """Eq. (12): next item, weighed contrast; the next item by full softmax, as in SASRec."""
        inputs_BL, targets_BL = batch
        contrast = self.contrast_weight * self.contrast(inputs_BL)
        return self.next_item_loss(inputs_BL, targets_BL) + contrast

    def contrast(self, inputs_BL: Tensor) -> Tensor:
        """Eq. (2): which of the other 2B - 1 views shows the same sequence, by dot products."""
        views_VL = torch.cat([self.augment(inputs_BL), self.augment(inputs_BL)])
        vectors_VD = self.encode(views_VL, last=1)[:, 0]
        logits_VV = (vectors_VD @ vectors_VD.T).masked_fill(torch.eye(len(views_VL)).bool(), -torch.inf)
        return F.cross_entropy(logits_VV, torch.arange(len(views_VL)).roll(len(inputs_BL)))

    def augment(self, inputs_BL: Tensor) -> Tensor:
        """Each row by one of the three operators, drawn with equal chances."""
        operator_B1 = torch.randint(3, (len(inputs_BL), 1))
        views = (self.crop(inputs_BL), self.hide(inputs_BL), self.reorder(inputs_BL))
        return torch.where(operator_B1 == 0, views[0], torch.where(operator_B1 == 1, views[1], views[2]))

    def run(self, inputs_BL: Tensor) -> Tensor:
        """A random run of floor(share n) items of each row, at least one: bool (B, L)."""
        width = inputs_BL.shape[1]
        count_B1 = (inputs_BL != self.num_items).sum(1, keepdim=True)
        length_B1 = (self.share * count_B1).long().clamp(min=1)
        offset_B1 = (torch.rand(count_B1.shape) * (count_B1 - length_B1 + 1)).long()
        first_B1 = width - count_B1 + offset_B1
        places_L = torch.arange(width)
        return (places_L >= first_B1) & (places_L < first_B1 + length_B1)

    def crop(self, inputs_BL: Tensor) -> Tensor:
        """A random run of floor(share n) items, at least one, moved to the right end (eq. 3)."""
        inside_BL = self.run(inputs_BL)
        kept_BL = torch.where(inside_BL, inputs_BL, self.num_items)
        # the run's last item goes to the last place
        width = inputs_BL.shape[1]
        last_B1 = (inside_BL * torch.arange(width)).amax(1, keepdim=True)
        return kept_BL.gather(1, (torch.arange(width) + last_B1 + 1) % width)

    def hide(self, inputs_BL: Tensor) -> Tensor:
        """floor(share n) random items become [mask] (eq. 4)."""
        real_BL = inputs_BL != self.num_items
        keys_BL = torch.rand(inputs_BL.shape).masked_fill(~real_BL, 2.0)
        hidden_BL = keys_BL.argsort(1).argsort(1) < (self.share * real_BL.sum(1, keepdim=True)).long()
        return inputs_BL.masked_fill(hidden_BL, self.mask_token)

    def reorder(self, inputs_BL: Tensor) -> Tensor:
        """A random run of floor(share n) items, at least one, is shuffled (eq. 5)."""
        inside_BL = self.run(inputs_BL)
        places_BL = torch.arange(inputs_BL.shape[1]).expand_as(inputs_BL)
        # outside the run the sort keys are the places; inside, the run's start plus a random fraction
        first_B1 = places_BL.masked_fill(~inside_BL, inputs_BL.shape[1]).amin(1, keepdim=True)
        keys_BL = torch.where(inside_BL, first_B1 + torch.rand(inputs_BL.shape) / 2, places_BL)
        return inputs_BL.gather(1, keys_BL.argsort(1))
