"""The arithmetic of a plan against real models, real tensors and real prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from recloom.data_shards.errors import UserError
from recloom.data_shards.packing import pack_window
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Sample
from recloom.data_shards.sources import movielens
from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.textualize import listwise, rating
from recloom.data_shards.textualize.template import TextOptions, load_template, one_line_titles
from recloom.trainer import packed_attention
from recloom.trainer.models import SMOLLM2, load_tokenizer
from recloom.trainer.planning.changes import changes, fitting_changes
from recloom.trainer.planning.memory import (
    GIB,
    Setup,
    activation_bytes,
    bulk_memory,
    cached_tokens,
    host_bytes,
    needed_tensor_parallel,
    training_memory,
)
from recloom.trainer.planning.model_size import KNOWN, find_model, read_size
from recloom.trainer.planning.shapes import ModelSize
from recloom.trainer.planning.tokens import samples_per_row
from recloom.trainer.systems.llama4rec.planning import prompt_tokens
from recloom.trainer.systems.llama4rec.settings import PromptsBlock

pytestmark = pytest.mark.usefixtures("fused_attention")

SEVEN, THIRTEEN, SEVENTY = (KNOWN[f"meta-llama/Llama-2-{size}-hf"] for size in ("7b", "13b", "70b"))


def llama_config(size: ModelSize) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.positions,
        tie_word_embeddings=size.tied,
        attn_implementation=packed_attention.PACKED,
    )


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


LLAMA_SHAPED = [(name, size) for name, size in KNOWN.items() if type(size) is ModelSize]


@pytest.mark.parametrize(("name", "size"), LLAMA_SHAPED)
def test_parameters_equal_the_real_models(name: str, size: ModelSize) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(size))
    assert size.parameters == num_parameters(model)
    assert size.layer_parameters == num_parameters(model.model.layers[0])
    assert size.largest_parameter == max(parameter.numel() for parameter in model.parameters())


def test_the_published_counts() -> None:
    assert SEVEN.parameters == 6_738_415_616
    assert THIRTEEN.parameters == 13_015_864_320
    assert SEVENTY.parameters == 68_976_648_192


def test_dimensions_are_read_from_a_folder(tmp_path: Path) -> None:
    """A head width of its own (Mistral Nemo) changes the attention's size."""
    config = MistralConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
    model = MistralForCausalLM(config)
    model.save_pretrained(tmp_path)
    size, where = find_model(str(tmp_path))
    assert size is not None and size.parameters == num_parameters(model) and where == "a local folder"


def test_the_built_in_model_is_known_before_it_is_made(smollm2: Path) -> None:
    assert read_size(smollm2 / "config.json") == replace(KNOWN[SMOLLM2], head_width=64)


def test_a_model_of_another_shape_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert find_model(str(tmp_path))[0] is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        find_model(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        find_model("./nowhere")


def saved_bytes(size: ModelSize, dtype: torch.dtype, row: int, checkpointing: bool) -> int:
    """Bytes that autograd keeps for the backward pass of one packed row, weights left out."""
    model = LlamaForCausalLM(llama_config(size)).to(dtype).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs: dict[str, Any] = {
        "input_ids": torch.zeros(1, row, dtype=torch.long),
        "boundaries": [0, row // 2, row],
    }
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = model(**inputs, logits_to_keep=1, use_cache=False)
    assert held.logits.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_activations_equal_what_autograd_keeps(dtype: str, kv_heads: int) -> None:
    row = 256
    size = ModelSize(128, 352, 4, 4, kv_heads, 64, 512)
    deep = replace(size, layers=6)
    kind, element = getattr(torch, dtype), {"bfloat16": 2, "float32": 4}[dtype]
    full = [saved_bytes(model, kind, row, False) for model in (size, deep)]
    assert (full[1] - full[0]) / (2 * row) == size.layer_activations(element, frozen=False)
    inputs = [saved_bytes(model, kind, row, True) for model in (size, deep)]
    assert (inputs[1] - inputs[0]) / (2 * row) == element * size.hidden
    assert activation_bytes(setup_of(size, dtype=dtype, row_tokens=row)) == pytest.approx(full[0], rel=0.05)


def setup_of(size: ModelSize, **changed: Any) -> Setup:
    plain = Setup(
        model=size,
        dtype="bfloat16",
        zero_stage=3,
        ranks=16,
        row_tokens=1600,
        answer_tokens=300,
        longest_prompt=1000,
        checkpointing=False,
        offload=False,
    )
    return replace(plain, **changed)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_model_states_equal_figure_1_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    """7.5 billion parameters on 64 GPUs."""
    memory = training_memory(setup_of(SEVEN, zero_stage=stage, ranks=64))
    state = memory.weights + memory.gradients + memory.optimizer
    assert state * 7.5e9 / SEVEN.parameters / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_model_states_equal_the_tensors_of_two_zero_3_ranks(tmp_path: Path, dtype: str) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from ranks import run_ranks

    size = ModelSize(256, 512, 4, 4, 2, 2000, 512)
    LlamaForCausalLM(llama_config(size)).save_pretrained(tmp_path / "model")
    out = tmp_path / "bytes.json"
    run_ranks(Path(__file__).parent / "zero_memory.py", 2, str(tmp_path / "model"), str(out), dtype)
    memory = training_memory(setup_of(size, dtype=dtype, ranks=2))
    state = memory.weights + memory.gradients + memory.optimizer + memory.bucket
    assert json.loads(out.read_text()) == pytest.approx(state, rel=0.01)


def test_offloading_moves_the_optimizer_to_main_memory() -> None:
    kept, moved = (training_memory(setup_of(SEVENTY, offload=offload)) for offload in (False, True))
    assert moved.weights == kept.weights and (moved.optimizer, moved.gradients, moved.update) == (0, 0, 0)
    setup = setup_of(SEVENTY, offload=True)
    assert host_bytes(setup, 8) == pytest.approx(1.5 * 18 * SEVENTY.parameters / 2)
    assert host_bytes(setup_of(SEVENTY), 8) == 0


def test_flops_equal_the_counter_of_torch() -> None:
    """The plain kernel computes all scores, twice those of causal attention."""
    size = ModelSize(256, 704, 3, 4, 2, 1000, 512)
    model, row, answers = LlamaForCausalLM(llama_config(size)), 128, 16
    ids = torch.zeros(1, row, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        held = model(input_ids=ids, boundaries=[0, row], logits_to_keep=answers, use_cache=False)
        held.logits.sum().backward()
    assert size.training_flops(row, 2 * row, answers / row) == pytest.approx(
        counter.get_total_flops(), rel=0.002
    )


def test_the_cache_of_llama_2() -> None:
    """Half a MiB a token for 7B; 2.5 times as many heads' dimensions but an eighth of them for 70B."""
    assert SEVEN.cache_bytes(2) == 2 * 32 * 4096 * 2 == GIB // 2048
    assert SEVENTY.cache_bytes(2) == 2 * 80 * 1024 * 2
    memory = bulk_memory(THIRTEEN, "bfloat16", 72 * GIB, 1)
    assert memory.weights == 2 * THIRTEEN.parameters
    assert cached_tokens(THIRTEEN, "bfloat16", memory, 1) == int(memory.cache / 819200)


@pytest.mark.parametrize(
    ("size", "gib", "gpus"), [(SEVEN, 80, 1), (SEVENTY, 80, 2), (SEVENTY, 40, 4), (SEVENTY, 12, None)]
)
def test_tensor_parallel_need(size: ModelSize, gib: int, gpus: int | None) -> None:
    assert needed_tensor_parallel(size, "bfloat16", 0.9 * gib * GIB, 2048) == gpus


Prompts = dict[bool, dict[bool, np.ndarray]]


@pytest.fixture(scope="module")
def real_lengths(shared_data: Path) -> Prompts:
    """Tokens of 120 prompts with ML-100K's histories and titles, by augmented and by rating task."""
    tables = movielens.load(movielens.Settings(path=str(shared_data / "ml-100k")), shared_data)
    split = leave_one_out(tables, 4.0)
    renderer = Renderer(load_tokenizer(str(shared_data / "llama2-tokenizer")))
    options = TextOptions(one_line_titles(tables.titles), "movie")
    liked, seen = (part.train.sequences(tables.num_users) for part in (split.topk, split.rating))
    bad = split.rating.train.select(split.rating.train.rating_N < 3).sequences(tables.num_users)
    rng = np.random.default_rng(0)
    pairs = rng.choice([user for user in range(tables.num_users) if len(liked[user]) >= 10], (120, 2))
    found: Prompts = {}
    for augmented in (False, True):
        samples = []
        for user, other in pairs.tolist():
            shown = rng.choice(split.topk.train.item_N, 10, replace=False).tolist()
            similar = liked[other][-10:].tolist() if augmented else None
            samples.append(ranking_prompt(options, liked[user], bad[user], shown, similar))
            samples.append(rating_prompt(options, seen[user], shown[0], similar))
        counts = np.array([len(renderer.render(sample).ids_T) for sample in samples])
        found[augmented] = {False: counts[::2], True: counts[1::2]}
    return found


def ranking_prompt(
    options: TextOptions, liked: np.ndarray, bad: np.ndarray, shown: list[int], similar: list[int] | None
) -> Sample:
    context = listwise.ListwiseContext(
        user=0,
        history=(),
        liked=liked[-20:].tolist(),
        disliked=bad[-5:].tolist(),
        candidates=shown,
        similar_history=similar,
        prediction=shown if similar else None,
        answer=shown,
    )
    return listwise.listwise_sample(load_template("listwise", listwise.FAMILY), context, options)


def rating_prompt(options: TextOptions, seen: np.ndarray, item: int, similar: list[int] | None) -> Sample:
    context = rating.RatingContext(
        user=0,
        history=[(other, 4.0) for other in seen[-20:].tolist()],
        item=item,
        similar_history=[(other, 3.0) for other in similar] if similar else None,
        prediction=3.7 if similar else None,
        answer=4.0,
    )
    return rating.rating_sample(load_template("rating", rating.FAMILY), context, options)


@pytest.mark.parametrize("augmented", [True, False])
def test_estimated_lengths_and_packing_are_those_of_real_prompts(
    real_lengths: Prompts, augmented: bool
) -> None:
    full = {kind: prompt_tokens(PromptsBlock(), kind, augmented) for kind in (False, True)}
    counts = real_lengths[augmented]
    for kind in (False, True):
        assert full[kind] == pytest.approx(counts[kind].mean(), rel=0.1)
    corpus_N = np.random.default_rng(0).choice(
        np.concatenate([counts[False], counts[False], counts[True]]), 1024
    )
    for pack_length in (1024, 1280, 1728, 2048):
        estimate = samples_per_row([full[False], full[False], full[True]], pack_length, 1024)
        assert estimate == pytest.approx(1024 / len(pack_window(corpus_N, pack_length)), rel=0.12)


SETUPS = st.builds(
    setup_of,
    st.sampled_from([SEVEN, THIRTEEN, SEVENTY]),
    dtype=st.sampled_from(["bfloat16", "float32"]),
    zero_stage=st.integers(0, 3),
    ranks=st.sampled_from([1, 2, 8, 16, 64]),
    row_tokens=st.integers(512, 4096),
    longest_prompt=st.integers(100, 2000),
    checkpointing=st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(setup=SETUPS)
def test_every_change_that_is_offered_saves_memory(setup: Setup) -> None:
    before = training_memory(setup).total
    assert all(training_memory(changed).total <= before for _, changed in changes(setup))
    assert training_memory(replace(setup, ranks=2 * setup.ranks)).total <= before


@settings(max_examples=100, deadline=None)
@given(setup=SETUPS, share=st.floats(0.05, 0.99))
def test_what_does_not_fit_gets_a_remedy(setup: Setup, share: float) -> None:
    usable = share * training_memory(setup).total
    remedies = fitting_changes(setup, usable)
    assert remedies
    offered = dict(changes(setup))
    assert all(training_memory(offered[text]).total <= usable for text in remedies if text in offered)
