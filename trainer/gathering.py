"""What ZeRO-3 sends between ranks, and when: a hint that DeepSpeed takes, something that it remembers too
long, and gloo's sums, which travel once.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist

from recloom.trainer.decoder_layers import decoder_layers


def layers_gathered_whole(network: Any) -> list[str]:
    """Kinds of layers whose weights ZeRO-3 shall gather in one message instead of one a matrix.

    They are what transformers says a device must hold whole. Networks without any are gathered by matrix,
    and so are networks that train a part of a layer (LoRA): DeepSpeed takes such a layer's gradients when the
    one of its input is there, and the first layer's input has none where the token embedding is frozen.
    """
    layers = decoder_layers(network)
    trained = [weight.requires_grad for layer in layers for weight in layer.parameters()]
    everything = all(weight.requires_grad for weight in network.parameters())
    return sorted({type(layer).__name__ for layer in layers}) if everything or not any(trained) else []


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


def add_by_exchange(backend: Any) -> None:
    """Have gloo's ranks send each other only the parts of a gradient that the other one keeps.

    torch's reduce-scatter over gloo is an all-reduce of a copy, which sends twice as much. backend:
    DeepSpeed's.
    """
    plain = backend.reduce_scatter_tensor

    def reduce_scatter_tensor(
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        op: Any,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        if async_op or op.name != "SUM":
            return plain(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
        received = torch.empty_like(input_tensor)
        dist.all_to_all_single(received, input_tensor, group=group)
        first, *others = received.view(-1, *output_tensor.shape)
        output_tensor.copy_(first)
        for part in others:
            output_tensor.add_(part)
        return None

    backend.reduce_scatter_tensor = reduce_scatter_tensor
