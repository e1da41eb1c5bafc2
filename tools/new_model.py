"""`recloom new-model`: a LLaMA with random weights beside a tokenizer, the start of a run from scratch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from recloom.data_shards.artifacts import write_manifest
from recloom.data_shards.errors import UserError
from recloom.trainer.models import load_tokenizer, quiet_transformers


@dataclass(frozen=True)
class ModelSizes:
    """layers: blocks. hidden: width. heads: of attention. context: longest position."""

    layers: int
    hidden: int
    heads: int
    context: int


def write_model(tokenizer_folder: Path, folder: Path, sizes: ModelSizes, seed: int) -> int:
    """Write the folder, which then serves as `model.path`; returns the number of parameters.

    The same seed gives the same weights. Raises UserError for sizes that do not fit, and for a folder that
    is there.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    check_sizes(sizes)
    if folder.exists():
        raise UserError(f"--out {folder}: it is there already: name another folder, or remove it.")
    tokenizer = load_tokenizer(str(tokenizer_folder))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden,
        intermediate_size=4 * sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=sizes.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_manifest(folder, kind="random model", seed=seed, **asdict(sizes))
    return int(sum(parameter.numel() for parameter in model.parameters()))


def check_sizes(sizes: ModelSizes) -> None:
    for name, value in asdict(sizes).items():
        if value < 1:
            raise UserError(f"--{name} {value}: at least 1 is needed: raise it.")
    pair = 2 * sizes.heads
    if sizes.hidden % pair:
        raise UserError(
            f"--hidden {sizes.hidden}: rotary positions need pairs in each of {sizes.heads} heads: take a "
            f"multiple of {pair}."
        )
