"""The arithmetic of a plan for a frozen LLM against real models, real tensors and real prompts."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from recloom.data_shards.renderer import Renderer
from recloom.data_shards.textualize import next_item
from recloom.data_shards.textualize.next_item import NextItemContext, cut_titles, next_item_sample
from recloom.data_shards.textualize.template import TextOptions, load_template, one_line_titles
from recloom.trainer import packed_attention
from recloom.trainer.config_io import build_config
from recloom.trainer.models import load_tokenizer
from recloom.trainer.planning.low_rank import lora_parts
from recloom.trainer.planning.memory import Setup, SmallParts, activation_bytes, training_memory
from recloom.trainer.planning.model_size import KNOWN, read_size
from recloom.trainer.planning.shapes import ModelSize, OptSize
from recloom.trainer.systems.a_llmrec.planning import LONGEST, projection_parts, prompt_tokens
from recloom.trainer.systems.a_llmrec.project import adapted
from recloom.trainer.systems.a_llmrec.projection import Projection, Widths
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig, LoraBlock

pytestmark = pytest.mark.usefixtures("fused_attention")

OPT_SIX = KNOWN["facebook/opt-6.7b"]
OPT = OptSize(128, 512, 4, 4, 4, 64, 512)
LLAMA = ModelSize(128, 352, 4, 4, 1, 64, 512)
ROW = 256


def made(size: ModelSize) -> Any:
    shared: dict[str, Any] = {
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "max_position_embeddings": size.positions,
        "attn_implementation": packed_attention.PACKED,
    }
    if isinstance(size, OptSize):
        return OPTForCausalLM(OPTConfig(ffn_dim=size.intermediate, dropout=0.0, **shared))
    kv = {"num_key_value_heads": size.kv_heads, "intermediate_size": size.intermediate}
    return LlamaForCausalLM(LlamaConfig(**shared, **kv))


def num_parameters(model: torch.nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


def a_llmrec(**blocks: Any) -> ALLMRecConfig:
    raw = {
        "name": "x",
        "system": "a_llmrec",
        "data": {"source": "amazon2018", "reviews": "Luxury_Beauty.json.gz"},
        "model": {"path": "smollm2-135m-instruct"},
        "backbones": {"sequential": {"model": "sasrec", "embedding": 50}},
    }
    config = build_config({**raw, **blocks}, "test")
    assert isinstance(config, ALLMRecConfig)
    return config


def test_opt_6_7b_has_its_published_parameters() -> None:
    assert OPT_SIX.parameters == 6_658_473_984
    with torch.device("meta"):
        model = made(OPT_SIX)
    assert num_parameters(model) == OPT_SIX.parameters
    assert num_parameters(model.model.decoder.layers[0]) == OPT_SIX.layer_parameters
    assert OPT_SIX.largest_parameter == max(p.numel() for p in model.parameters())


def test_dimensions_of_opt_are_read_from_a_folder(tmp_path: Path) -> None:
    """OPT-350M is of another shape: its norms stand behind, its token embeddings are narrower."""
    made(OPT).save_pretrained(tmp_path)
    assert read_size(tmp_path / "config.json") == OPT
    OPTConfig(do_layer_norm_before=False, word_embed_proj_dim=512).save_pretrained(tmp_path)
    assert read_size(tmp_path / "config.json") is None


def test_the_layers_that_lora_adapts_are_those_of_the_models() -> None:
    for size, layer in ((OPT, "model.decoder.layers.0."), (LLAMA, "model.layers.0.")):
        found = {
            name.rsplit(".", 1)[-1]: (module.in_features, module.out_features)
            for name, module in made(size).named_modules()
            if name.startswith(layer) and isinstance(module, torch.nn.Linear)
        }
        assert found == size.linear_layers


@pytest.mark.parametrize("align", [{"width": 40}, {"width": 60}])
@pytest.mark.parametrize("methods", [["a_llmrec"], ["mlp_llm"], ["mlp_llm", "a_llmrec"]])
@pytest.mark.parametrize("project", [{}, {"hidden": 96, "user_vector": False}, {"item_vectors": "none"}])
def test_trained_parameters_are_those_of_f_u_and_f_i(
    methods: list[str], project: dict[str, Any], align: dict[str, int]
) -> None:
    """F_I of MLP-LLM starts from the recommender's 50 numbers; of both methods the larger counts."""
    config = a_llmrec(methods=methods, project=project, align=align)
    user = 50 if config.project.user_vector else None
    widest = max({"mlp_llm": 50, "a_llmrec": align["width"]}[name] for name in methods)
    item = None if config.project.item_vectors == "none" else widest
    built = Projection(Widths(user, item, config.project.hidden or OPT.hidden, OPT.hidden))
    small = projection_parts(config, OPT)
    assert small.parameters == num_parameters(built)
    assert small.largest == max(p.numel() for p in built.parameters())


@pytest.mark.parametrize("size", [OPT, LLAMA])
def test_trained_parameters_are_those_of_the_adapters(size: ModelSize) -> None:
    lora = LoraBlock(modules=("q_proj", "v_proj"), r=4)
    assert lora_parts(lora, size).parameters == num_parameters(adapted(made(size), lora), trained=True)


def saved_bytes(size: ModelSize, dtype: torch.dtype, checkpointing: bool, lora: LoraBlock | None) -> int:
    """Bytes that autograd keeps for the backward pass of one row through a frozen model, without weights."""
    model = made(size).to(dtype).train().requires_grad_(False)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inputs: dict[str, Any] = {"boundaries": [0, ROW], "position_ids": torch.arange(ROW)[None]}
    if lora is None:
        inputs["inputs_embeds"] = torch.zeros(1, ROW, size.hidden, dtype=dtype, requires_grad=True)
    else:
        model = adapted(model, lora).to(dtype)
        inputs["input_ids"] = torch.zeros(1, ROW, dtype=torch.long)
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = model(**inputs, logits_to_keep=1, use_cache=False)
    assert held.logits.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def setup_of(size: ModelSize, small: SmallParts, **changed: Any) -> Setup:
    plain = Setup(
        model=size,
        dtype="bfloat16",
        zero_stage=3,
        ranks=2,
        row_tokens=ROW,
        answer_tokens=1,
        longest_prompt=ROW,
        checkpointing=False,
        offload=False,
        block="project",
        small=small,
    )
    return replace(plain, **changed)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("size", [OPT, LLAMA])
@pytest.mark.parametrize("dropout", [None, 0.0, 0.1])
def test_activations_of_a_frozen_model(size: ModelSize, dtype: str, dropout: float | None) -> None:
    """Two layers more keep what two layers keep. Adapters of one input may keep it once."""
    kind, element = getattr(torch, dtype), {"bfloat16": 2, "float32": 4}[dtype]
    lora = None if dropout is None else LoraBlock(lora_dropout=dropout)
    small = SmallParts(0, 0) if lora is None else lora_parts(lora, size)
    deep = replace(size, layers=6)
    full = [saved_bytes(model, kind, False, lora) for model in (size, deep)]
    estimate = size.layer_activations(element, frozen=True) + element * small.layer_elements
    shared = element * size.hidden if dropout == 0.0 else 0
    assert (full[1] - full[0]) / (2 * ROW) == estimate - shared
    inputs = [saved_bytes(model, kind, True, None) for model in (size, deep)]
    assert (inputs[1] - inputs[0]) / (2 * ROW) == element * size.hidden
    whole = activation_bytes(setup_of(size, small, dtype=dtype))
    assert full[0] < whole < 1.25 * full[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_activations_of_opt_in_training(dtype: str) -> None:
    kind, element = getattr(torch, dtype), {"bfloat16": 2, "float32": 4}[dtype]
    counts = []
    for layers in (4, 6):
        model, kept = made(replace(OPT, layers=layers)).to(kind).train(), {}
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def keep(
            tensor: torch.Tensor, weights: set[int] = weights, kept: dict[int, torch.Tensor] = kept
        ) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            held = model(
                input_ids=torch.zeros(1, ROW, dtype=torch.long), boundaries=[0, ROW], logits_to_keep=1
            )
        assert held.logits.requires_grad
        counts.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
    assert (counts[1] - counts[0]) / (2 * ROW) == OPT.layer_activations(element, frozen=False)


@pytest.mark.parametrize("size", [replace(OPT, hidden=256, intermediate=1024), replace(LLAMA, hidden=256)])
def test_flops_of_a_frozen_model_equal_the_counter_of_torch(size: ModelSize) -> None:
    """The plain kernel computes all scores, twice those of causal attention."""
    model, row, answers = made(size).requires_grad_(False), 128, 16
    soft = torch.zeros(1, row, size.hidden, requires_grad=True)
    inputs = {"position_ids": torch.arange(row)[None], "boundaries": [0, row], "use_cache": False}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(inputs_embeds=soft, logits_to_keep=answers, **inputs).logits.sum().backward()
    estimate = size.training_flops(row, 2 * row, answers / row, frozen=True)
    assert estimate == pytest.approx(counter.get_total_flops(), rel=0.005)


def test_memory_of_opt_6_7b_by_hand() -> None:
    """One A6000: 6.66e9 frozen and 34e6 trained parameters, two bytes each; 14 more a trained one."""
    small = projection_parts(a_llmrec(methods=["a_llmrec"]), OPT_SIX)
    trained = 4096 * (50 + 128 + 6) + 2 * 4096 * 4097
    assert small == SmallParts(trained, 4096**2)
    memory = training_memory(setup_of(OPT_SIX, small, ranks=1, row_tokens=1000))
    assert memory.weights == 2 * (6_658_473_984 + trained)
    assert (memory.gradients, memory.optimizer) == (2 * trained, 12 * trained)
    assert memory.gathered == 2 * (1e9 + 4096**2)
    per_layer = 2 * (6 * 4096 + 16384 + 4) + 4 * 32
    assert memory.activations == 1000 * (32 * per_layer + 3 * 2 * 4096 + 4 * 4096)


def test_two_ranks_halve_what_is_held_and_stage_1_what_is_updated() -> None:
    small = SmallParts(1000, 100)
    one, two = (training_memory(setup_of(OPT, small, ranks=ranks)) for ranks in (1, 2))
    assert (two.weights, two.gradients, two.optimizer) == (
        one.weights / 2,
        one.gradients / 2,
        one.optimizer / 2,
    )
    first = training_memory(setup_of(OPT, small, zero_stage=1))
    assert (first.weights, first.gradients) == (one.weights, one.gradients)
    assert first.optimizer == two.optimizer and first.gathered == 0


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("bfloat16", "project"),
        pytest.param("bfloat16", "lora", marks=pytest.mark.slow),
        pytest.param("float32", "project", marks=pytest.mark.slow),
    ],
)
def test_memory_equals_the_tensors_of_two_zero_3_ranks(tmp_path: Path, dtype: str, kind: str) -> None:
    """DeepSpeed keeps weights of fewer than 1e5 elements whole, which here are some: the estimate is low."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from ranks import run_ranks

    size, bucket = OptSize(320, 1280, 4, 4, 4, 2000, 512), 700_000
    made(size).save_pretrained(tmp_path / "model")
    out = tmp_path / "bytes.json"
    script = Path(__file__).parent / "zero_frozen_memory.py"
    run_ranks(script, 2, str(tmp_path / "model"), str(out), dtype, str(bucket), kind)
    config = a_llmrec(methods=["a_llmrec"])
    small = projection_parts(config, size) if kind == "project" else lora_parts(config.lora, size)
    setup = setup_of(size, small, dtype=dtype)
    memory = training_memory(setup)
    state = memory.weights + memory.gradients + memory.optimizer + setup.element * bucket
    assert state < json.loads(out.read_text()) < 1.08 * state


@pytest.mark.parametrize("words", [None, 5, 10])
def test_estimated_lengths_are_those_of_real_questions(
    shared_data: Path, smollm2: Path, words: int | None
) -> None:
    """Beauty of 2014, 20 candidates; with vectors and as text."""
    with open(shared_data / "amazon2014-beauty/items.csv") as file:
        titles = [row["title"] for row in csv.DictReader(file)]
    options = TextOptions(cut_titles(one_line_titles(titles), words), "item")
    renderer, rng = Renderer(load_tokenizer(str(smollm2))), np.random.default_rng(0)
    template = load_template("next_item", next_item.FAMILY)
    config = a_llmrec(prompts={} if words is None else {"title_words": words})
    shown = [rng.choice(len(titles), 30, replace=False).tolist() for _ in range(40)]
    for soft in (False, True):
        row, place = (0, "behind") if soft else (None, None)
        contexts = [NextItemContext(0, i[:10], i[10:], row, place, answer=i[12]) for i in shown]
        samples = [next_item_sample(template, context, options, "bought") for context in contexts]
        counts = [len(renderer.render(sample).ids_T) for sample in samples]
        estimate = prompt_tokens(config, soft, 19)
        assert estimate == pytest.approx(np.mean(counts), rel=0.15) and max(counts) < LONGEST * estimate
