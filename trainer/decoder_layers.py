"""Which modules of a language model are its decoder layers, and how the last one computes less.

What the last layer's feed-forward network adds where no logits are wanted is read by nobody: no layer comes
behind it. The network is two thirds and more of a layer, so of a model of 30 layers this spares 2 %. Keys and
values of the last attention are needed everywhere and stay.

Shapes: B = 1 row, T tokens, C width of the model, A positions whose logits are wanted.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor


def decoder_layers(network: Any) -> list[Any]:
    """What transformers says a device must hold whole, in the order of the network."""
    told = {name for module in network.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in network.modules() if type(module).__name__ in told]


def spare_last_layer(network: Any) -> None:
    """Have the last layer of a language model heed `kept_A` among the keywords of the model's forward.

    kept_A: as `logits_to_keep`, positions of a batch of one row; hidden states are right there only. Without
    it, and in models that name their feed-forward network otherwise, nothing changes, nor does a second call.
    """
    layer: Any = next(reversed(decoder_layers(network)), None)
    feed_forward: Any = getattr(layer, "mlp", None)
    if not hasattr(feed_forward, "down_proj") or hasattr(feed_forward, "kept_A"):
        return
    feed_forward.kept_A = None
    feed_forward.everywhere, layer.everywhere = feed_forward.forward, layer.forward
    feed_forward.forward = MethodType(forward_where_kept, feed_forward)
    layer.forward = MethodType(forward_and_tell, layer)


def forward_and_tell(self: Any, *args: Any, kept_A: Tensor | None = None, **kwargs: Any) -> Any:
    """The keyword comes with the layer's call, so a recomputation in backward has that of its own row."""
    self.mlp.kept_A = kept_A
    return self.everywhere(*args, **kwargs)


def forward_where_kept(self: Any, hidden_BTC: Tensor) -> Tensor:
    if self.kept_A is None:
        everywhere_BTC: Tensor = self.everywhere(hidden_BTC)
        return everywhere_BTC
    found_BAC = self.everywhere(hidden_BTC[:, self.kept_A])
    return torch.zeros_like(hidden_BTC).index_copy(1, self.kept_A, found_BAC)
