"""What the sequential backbones share whose item embeddings are tied to their scores.

Shapes: B sequences, L length, D embedding width, I items, M targets that are no padding.
"""

from __future__ import annotations

from torch import Tensor, nn

from recloom.trainer.collaborative.softmax import softmax_loss
from recloom.trainer.collaborative.tasks import SequentialBackbone


class NextItemBackbone(SequentialBackbone):
    """Scores are dot products of the last hidden state and the item embeddings.

    A subclass sets `items`, whose first rows are the catalogue and whose row `num_items` is padding, and
    defines `encode`.
    """

    items: nn.Embedding

    def encode(self, inputs_BL: Tensor, last: int | None = None) -> Tensor:
        """Hidden states (B, L, D) of inputs that are padded on the left, of the `last` positions at least."""
        raise NotImplementedError

    def next_item_loss(self, inputs_BL: Tensor, targets_BL: Tensor) -> Tensor:
        """Cross-entropy of the next item over the full catalogue, at every real position."""
        real_BL = targets_BL != self.num_items
        hidden_MD = self.encode(inputs_BL)[real_BL]
        return softmax_loss(hidden_MD, self.item_vectors(), targets_BL[real_BL])

    def user_vectors(self, users_B: Tensor, histories_BL: Tensor) -> Tensor:
        """The representation of the sequence: the hidden state at its last item."""
        return self.encode(histories_BL, last=1)[:, -1]

    def states(self, histories_BL: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode(histories_BL), histories_BL[:, -self.history_length :] != self.num_items

    def item_vectors(self) -> Tensor:
        return self.items.weight[: self.num_items]
