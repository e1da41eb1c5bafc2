"""Tensor parallelism with ZeRO and data-parallel ranks against plain PyTorch; the errors that guard it."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from fixed_samples import SmallVocabulary
from plain_loop import PlainTraining, plain_training
from ranks import run_ranks
from tiny_models import KINDS, write_tiny_model

from recloom.data_shards.errors import UserError
from recloom.trainer.config import ModelBlock, ParallelBlock, TrainingBlock
from recloom.trainer.engine import deepspeed_json
from recloom.trainer.parallel_layout import (
    GLM,
    LLAMA,
    OPT,
    RankLayout,
    check_model,
    division_of,
)

LARGEST_CHANGE = 5e-3  # six steps of at most the learning rate
POSITIONS = 258 * 32  # OPT's table
SCRIPT = Path(__file__).parent / "tensor_ranks.py"
# Kind of model, ZeRO stage, gradient checkpointing and perhaps an option of tensor_ranks.py.
Case = tuple[str, int, str]
ESSENTIAL: dict[tuple[int, int], list[Case]] = {
    (2, 2): [("llama", 3, "yes"), ("opt", 2, "no"), ("glm", 3, "no"), ("llama_tied", 1, "no")],
    (4, 2): [("llama_tied", 3, "no")],
}
OTHERS: dict[tuple[int, int], list[Case]] = {
    (2, 2): [("llama", 0, "no"), ("llama", 1, "no"), ("llama_tied", 3, "no"), ("glm4", 3, "yes")],
    (4, 2): [("llama", 3, "no"), ("opt", 3, "no"), ("glm", 1, "no"), ("glm4", 2, "yes")],
    (4, 1): [("llama", 3, "no:hpz"), ("opt", 2, "no"), ("glm", 3, "no"), ("glm4", 1, "no")],
    (2, 1): [("llama", 3, "no:offload_parameters"), ("llama", 2, "no:overlap")],
    (4, 4): [("opt", 3, "no"), ("opt", 2, "yes")],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        write_tiny_model(folder / kind, kind)
    return folder


@pytest.fixture(scope="module")
def plain(models: Path) -> dict[str, PlainTraining]:
    return {kind: plain_training(models / kind, SmallVocabulary()) for kind in KINDS}


def header_of(model: Path) -> bytes:
    """Names, shapes and number formats of a file's weights, in its order."""
    data = (model / "model.safetensors").read_bytes()
    return data[8 : 8 + struct.unpack("<Q", data[:8])[0]]


def check(world: int, tensor: int, cases: list[Case], models: Path, plain: Any, out: Path) -> None:
    """Losses, norms, validation loss and exports equal the plain loop's."""
    named = [f"{models / kind}:{stage}:{checkpointing}" for kind, stage, checkpointing in cases]
    run_ranks(SCRIPT, world, str(out), str(tensor), *named)
    for number, (kind, stage, _) in enumerate(cases):
        found, wanted = json.loads((out / f"{number}.json").read_text()), plain[kind]
        losses_S, norms_S = torch.tensor(found["steps"], dtype=torch.float64).T
        wanted_S, wanted_norms_S = torch.tensor(wanted.steps, dtype=torch.float64).T
        label = f"{kind}, ZeRO-{stage}, {tensor} of {world} ranks"
        assert (losses_S - wanted_S).abs().max() < 1e-5, f"{label}: {losses_S} are not {wanted_S}"
        assert abs(found["validation"] - wanted.validation) < 1e-5, label
        if stage:  # DeepSpeed tells no norm without ZeRO
            assert (norms_S - wanted_norms_S).abs().max() < 3e-5, f"{label}: {norms_S}, {wanted_norms_S}"
        weights = list(wanted.model.parameters())
        small = sum(weight.numel() for weight in weights if weight.dim() == 1)
        whole = sum(weight.numel() for weight in weights)
        # Only norms, biases and positions are held twice; a rank may have a word more than another.
        bound = whole / tensor + small + (POSITIONS if kind == "opt" else 0) + 2 * 32
        assert found["held"] <= bound, f"{label}: {found['held']} weights a rank of {whole}"
        check_export(out / str(number), wanted, models / kind, label)


def check_export(folder: Path, wanted: PlainTraining, model: Path, label: str) -> None:
    """The folder is laid out as the model that was given, and its weights are those of the plain loop."""
    from transformers import AutoModelForCausalLM

    assert {path.name for path in folder.iterdir()} == {path.name for path in model.iterdir()}, label
    assert header_of(folder) == header_of(model), label
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text()) == json.loads((model / name).read_text()), label
    state = wanted.model.state_dict()
    for name, weight in load_file(folder / "model.safetensors").items():
        off = (state[name] - weight).abs()
        # AdamW makes steps of the rounding of a gradient that is zero: that of keys' biases, and a few more.
        bound = LARGEST_CHANGE if name.endswith("k_proj.bias") else 1e-6
        assert off.median() < bound and off.max() < LARGEST_CHANGE, f"{label}: {name}, {off.max()}"
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        off = (loaded(ids).logits - wanted.model.eval()(ids).logits).abs()
    assert off.max() < 2e-3, f"{label}: {off.max()}"


@pytest.mark.parametrize(("world", "tensor"), ESSENTIAL)
def test_equals_plain_loop(world: int, tensor: int, models: Path, plain: Any, tmp_path: Path) -> None:
    check(world, tensor, ESSENTIAL[world, tensor], models, plain, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "tensor"), OTHERS)
def test_more_combinations(world: int, tensor: int, models: Path, plain: Any, tmp_path: Path) -> None:
    check(world, tensor, OTHERS[world, tensor], models, plain, tmp_path)


def test_ranks_of_a_group_must_read_the_same_rows(models: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="Data inconsistency within the TP group"):
        run_ranks(SCRIPT, 2, str(tmp_path), "2", f"{models / 'llama'}:2:no:split")


def test_layout_of_ranks() -> None:
    places = [RankLayout(rank, 6, 2) for rank in range(6)]
    assert [(p.data_rank, p.tensor_rank) for p in places] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert {p.data_size for p in places} == {3}


def test_which_layers_are_divided() -> None:
    assert division_of("llm.model.layers.0.self_attn.q_proj", LLAMA) == "column"
    assert division_of("model.layers.1.mlp.down_proj", LLAMA) == "row"
    assert division_of("model.layers.1.mlp.gate_up_proj", GLM) == "packed"
    assert division_of("model.decoder.layers.0.fc2", OPT) == "row"
    assert division_of("model.layers.0.input_layernorm", LLAMA) is None
    assert division_of("mformer.blocks.0.cross_attention.out", LLAMA) is None
    assert division_of("projection.item.0", OPT) is None


def test_low_rank_updates_are_divided_with_their_layer() -> None:
    layer = "base_model.model.model.layers.0.self_attn"
    assert division_of(f"{layer}.q_proj.base_layer", LLAMA) == "column"
    assert division_of(f"{layer}.q_proj.lora_A.default", LLAMA) is None
    assert division_of(f"{layer}.q_proj.lora_B.default", LLAMA) == "column"
    assert division_of(f"{layer}.o_proj.lora_A.default", LLAMA) == "row"
    assert division_of(f"{layer}.o_proj.lora_B.default", LLAMA) is None


@pytest.mark.parametrize(
    ("tensor", "heads", "kv_heads", "said"),
    [
        (4, 8, 2, r"parallel.tensor = 4: the model's 2 key-value heads can't be .* divisor of 2\."),
        (3, 8, 8, r"parallel.tensor = 3: the model's 8 key-value heads .* divisor of 8\."),
        (2, 9, 4, r"parallel.tensor = 2: the model's 9 attention heads .* divisor of 9\."),
    ],
)
def test_heads_that_ranks_cannot_share(tensor: int, heads: int, kv_heads: int, said: str) -> None:
    config = SimpleNamespace(model_type="llama", num_attention_heads=heads, num_key_value_heads=kv_heads)
    check_model(1, config)
    with pytest.raises(UserError, match=said):
        check_model(tensor, config)


def test_a_model_whose_layers_are_unknown() -> None:
    config = SimpleNamespace(model_type="gpt2", num_attention_heads=8)
    with pytest.raises(UserError, match="model of type 'gpt2' are not known here, only those of llama"):
        check_model(2, config)


def settings(tensor: int, rows: int, ranks: int) -> dict[str, Any]:
    training = TrainingBlock(rows_per_step=rows)
    return deepspeed_json(ModelBlock(path="x"), training, ParallelBlock(tensor=tensor), ranks)


def test_rows_are_shared_by_data_parallel_ranks() -> None:
    assert settings(2, 4, 8)["gradient_accumulation_steps"] == 1
    assert settings(2, 4, 8)["tensor_parallel"] == {"autotp_size": 2}
    assert "tensor_parallel" not in settings(1, 8, 8)
    with pytest.raises(UserError, match="rows_per_step = 6: 4 data-parallel ranks can't"):
        settings(2, 6, 8)


def test_ranks_that_cannot_form_groups() -> None:
    with pytest.raises(UserError, match="parallel.tensor = 4: 6 ranks can't form groups of 4, start a mult"):
        settings(4, 6, 6)
