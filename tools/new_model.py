"""A LLaMA with random weights beside a tokenizer: the start of a run from scratch.

    python -m recloom.tools.new_model TOKENIZER FOLDER --layers 4 --hidden 256

TOKENIZER is any folder with a tokenizer, one of tools/train_tokenizer.py for instance; FOLDER then serves as
`model.path`. The same seed gives the same weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recloom.data_shards.errors import UserError


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="recloom.tools.new_model",
        description="Write a LLaMA with random weights beside a tokenizer.",
    )
    made.add_argument("tokenizer", type=Path, help="a folder that holds a tokenizer")
    made.add_argument("folder", type=Path, help="where the model is written; must not exist yet")
    made.add_argument("--layers", type=int, default=4, help="blocks (default 4)")
    made.add_argument("--hidden", type=int, default=256, help="width, a multiple of twice the heads (default 256)")
    made.add_argument("--heads", type=int, default=4, help="attention heads (default 4)")
    made.add_argument("--context", type=int, default=2048, help="longest position (default 2048)")
    made.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    return made


def write_model(options: argparse.Namespace) -> int:
    """Write the folder; returns the number of parameters. Raises UserError for sizes that do not fit."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from recloom.trainer.models import load_tokenizer

    check_sizes(options)
    tokenizer = load_tokenizer(str(options.tokenizer))
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        max_position_embeddings=options.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)
    return int(sum(parameter.numel() for parameter in model.parameters()))


def check_sizes(options: argparse.Namespace) -> None:
    for name in ("layers", "hidden", "heads", "context"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: at least 1 is needed: raise it.")
    if options.hidden % (2 * options.heads):
        raise UserError(
            f"--hidden {options.hidden}: rotary positions need pairs in each of {options.heads} heads: "
            f"take a multiple of {2 * options.heads}."
        )
    if options.folder.exists():
        raise UserError(f"{options.folder}: it is there already: name another folder, or remove it.")


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        count = write_model(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.folder}: a LLaMA of {count:,} parameters, with the tokenizer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
