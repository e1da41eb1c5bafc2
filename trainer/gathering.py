"""When ZeRO-3 gathers what: hints that DeepSpeed takes, and one thing that it remembers too long."""

from __future__ import annotations

import inspect
from typing import Any


def gather_by_layer(network: Any) -> None:
    """Have ZeRO-3 gather a decoder layer's weights in one message instead of one a matrix.

    Layers are what transformers says a device must hold whole. Networks without any are gathered as before,
    and so are networks that train a part of a layer (LoRA): DeepSpeed takes such a layer's gradients when the
    one of its input is there, and the first layer's input has none where the token embedding is frozen.
    """
    from deepspeed.utils import set_z3_leaf_modules

    names = {
        name for module in network.modules() for name in getattr(module, "_no_split_modules", None) or ()
    }
    layers = [module for module in network.modules() if type(module).__name__ in names]
    trained = [weight.requires_grad for layer in layers for weight in layer.parameters()]
    everything = all(weight.requires_grad for weight in network.parameters())
    if layers and (everything or not any(trained)):
        set_z3_leaf_modules(network, sorted(names), raise_if_not_found=False)


def forget_with_trace(coordinator: Any) -> None:
    """Have ZeRO-3 decide anew, once steps are of another kind, which weights a layer gives back.

    DeepSpeed remembers that by the layer's place in a step: behind a validation, which needs no weight twice,
    a training step would gather every layer again for its backward pass.
    """
    decide = type(coordinator)._PartitionedParameterCoordinator__params_to_release
    remembered = inspect.getclosurevars(decide).nonlocals["func"]  # an lru_cache behind a decorator
    invalidate = coordinator._invalidate_trace

    def invalidate_and_forget() -> None:
        remembered.cache_clear()
        invalidate()

    coordinator._invalidate_trace = invalidate_and_forget
