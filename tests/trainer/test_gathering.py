"""What ZeRO-3 gathers, and when."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from ranks import run_ranks

from recloom.trainer.gathering import layers_gathered_whole

SCRIPT = Path(__file__).parent / "gathering_ranks.py"


@pytest.mark.parametrize(
    ("trained", "by_layer"), [("", True), ("no weight", True), ("q_proj", False), ("layers", False)]
)
def test_a_layer_is_gathered_whole_only_where_its_gradients_are_taken_right(
    tiny_llama: Path, trained: str, by_layer: bool
) -> None:
    """DeepSpeed loses gradients of a layer that is trained in part and whose input has none (LoRA)."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(tiny_llama)
    for name, weight in network.named_parameters():
        weight.requires_grad = trained in name
    assert layers_gathered_whole(network) == (["LlamaDecoderLayer"] if by_layer else [])


def test_validation_makes_no_training_step_gather_layers_twice(tiny_llama: Path) -> None:
    run_ranks(SCRIPT, 2, str(tiny_llama))
