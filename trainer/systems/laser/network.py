"""The network of a method: which parts stand around the frozen LLM, and its trained weights as files.

Shapes: D width of the recommender, L prefix tokens, H width of the LLM.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from recloom.data_shards.artifacts import atomic_write_bytes, read_manifest
from recloom.data_shards.errors import UserError
from recloom.trainer.systems.laser.bituning import BiTuning
from recloom.trainer.systems.laser.methods import Method
from recloom.trainer.systems.laser.mformer import MFormer
from recloom.trainer.systems.laser.settings import BiTuneBlock

WEIGHTS = "bituning.safetensors"


def make_network(
    llm: Any,
    method: Method,
    settings: BiTuneBlock,
    width: int,
    token_scale: float,
    mean_H: Tensor,
    eos: int,
    num_start: int = 0,
) -> BiTuning:
    """Fresh weights from torch's global generator.

    Args:
        llm: a base model, without a head. width: D. eos: id of the end token.
        num_start: tokens that begin every text.
        token_scale, mean_H: root mean square and mean of the LLM's token embeddings.
    """
    mformer = settings.mformer if method.moe else settings.mformer.model_copy(update={"experts": 1})
    scale = settings.prefix_scale * token_scale
    prefix: MFormer | Tensor | None = None
    if method.prefix == "mformer":
        prefix = MFormer(mformer, width, len(mean_H))
        prefix.match_scale(scale)
    elif method.prefix == "free":
        prefix = scale * torch.randn(mformer.tokens, len(mean_H))
    suffix_H = mean_H if method.pooling == "suffix" else None
    return BiTuning(llm, prefix, method.pooling, suffix_H, eos, num_start)


def save_weights(weights: dict[str, Tensor], folder: Path) -> None:
    """Trained weights by their names in `BiTuning`; the caller writes the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    atomic_write_bytes(folder / WEIGHTS, safetensors.torch.save(kept))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Raises UserError for a folder that is incomplete or damaged."""
    read_manifest(folder, verify=True)
    return safetensors.torch.load_file(folder / WEIGHTS)


def load_weights(network: BiTuning, weights: dict[str, Tensor], origin: Path) -> None:
    """Fill in all that is trained, before ranks share it. Raises UserError where the weights do not fit."""
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    shapes = {name: tuple(p.shape) for name, p in trained.items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if shapes != found:
        odd = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
        raise UserError(
            f"{origin}: its {odd[0]} is {found.get(odd[0], 'not there')}, this network's is "
            f"{shapes.get(odd[0], 'not there')}: use the same method, bitune.mformer, backbone and LLM."
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
