"""The plan's arithmetic against real models, real prompts and real tensors, and its verdicts."""

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
from recloom.data_shards.sources import movielens
from recloom.data_shards.splits import leave_one_out
from recloom.data_shards.textualize import listwise, rating
from recloom.data_shards.textualize.template import TextOptions, load_template, one_line_titles
from recloom.trainer import packed_attention
from recloom.trainer.config import PromptsBlock, RunConfig
from recloom.trainer.config_io import read_config
from recloom.trainer.models import SMOLLM2, load_tokenizer
from recloom.trainer.plan import Plan, format_plan, make_plan
from recloom.trainer.planning.changes import changes, fitting_changes
from recloom.trainer.planning.memory import (
    GIB,
    Setup,
    activation_bytes,
    bulk_memory,
    cached_tokens,
    host_bytes,
    layer_activations,
    needed_tensor_parallel,
    training_memory,
)
from recloom.trainer.planning.model_size import KNOWN, ModelSize, find_model, read_size
from recloom.trainer.planning.tokens import prompt_tokens, samples_per_row

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


@pytest.mark.parametrize(("name", "size"), KNOWN.items())
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
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
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

    inputs: dict[str, Any] = {"input_ids": torch.zeros(1, row, dtype=torch.long), "boundaries": [0, row // 2, row]}
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
    assert (full[1] - full[0]) / (2 * row) == layer_activations(size, element)
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
    assert size.training_flops(row, 2 * row, answers / row) == pytest.approx(counter.get_total_flops(), rel=0.002)


def test_the_cache_of_llama_2() -> None:
    """Half a MiB a token for 7B; 2.5 times as many heads' dimensions but an eighth of them for 70B."""
    assert SEVEN.cache_bytes(2) == 2 * 32 * 4096 * 2 == GIB // 2048
    assert SEVENTY.cache_bytes(2) == 2 * 80 * 1024 * 2
    memory = bulk_memory(THIRTEEN, "bfloat16", 72 * GIB, 1)
    assert memory.weights == 2 * THIRTEEN.parameters
    assert cached_tokens(THIRTEEN, "bfloat16", memory, 1) == int(memory.cache / 819200)


@pytest.mark.parametrize(
    ("size", "gib", "gpus"), [(SEVEN, 80, 1), (SEVENTY, 80, 2), (SEVENTY, 40, 8), (SEVENTY, 12, None)]
)
def test_tensor_parallel_need(size: ModelSize, gib: int, gpus: int | None) -> None:
    assert needed_tensor_parallel(size, "bfloat16", 0.9 * gib * GIB, 2048) == gpus


def real_lengths(folder: Path, prompts: PromptsBlock, augmented: bool) -> dict[bool, np.ndarray]:
    """Token counts of 150 ranking (False) and rating (True) prompts with ML-1M's histories and titles."""
    tables = movielens.load(movielens.Settings(variant="1m", path=str(folder / "ml-1m")), folder)
    split = leave_one_out(tables, 4.0)
    renderer = Renderer(load_tokenizer(str(folder / "llama2-tokenizer")))
    templates = load_template("listwise", listwise.FAMILY), load_template("rating", rating.FAMILY)
    options = TextOptions(one_line_titles(tables.titles), prompts.item_noun)
    liked, seen = split.topk.train.sequences(tables.num_users), split.rating.train.sequences(tables.num_users)
    bad = split.rating.train.select(split.rating.train.rating_N < 3).sequences(tables.num_users)
    rng = np.random.default_rng(0)
    lengths: dict[bool, list[int]] = {False: [], True: []}
    for user, other in rng.integers(0, tables.num_users, (150, 2)).tolist():
        shown = rng.choice(split.topk.train.item_N, prompts.candidates, replace=False).tolist()
        similar = liked[other][-prompts.similar_items :].tolist() if augmented else None
        ranking = listwise.ListwiseContext(
            user=user,
            history=liked[user].tolist(),
            liked=liked[user][-prompts.history_items :].tolist(),
            disliked=bad[user][-prompts.disliked_items :].tolist(),
            candidates=shown,
            similar_history=similar,
            prediction=shown[: prompts.prediction_items] if augmented else None,
            answer=shown[: prompts.answer_items],
        )
        question = rating.RatingContext(
            user=user,
            history=[(item, 4.0) for item in seen[user][-prompts.history_items :].tolist()],
            item=shown[0],
            similar_history=[(item, 4.0) for item in similar] if similar else None,
            prediction=3.7 if augmented else None,
            answer=4.0,
        )
        samples = listwise.listwise_sample(templates[0], ranking, options), rating.rating_sample(
            templates[1], question, options
        )
        for kind, sample in enumerate(samples):
            lengths[bool(kind)].append(len(renderer.render(sample).ids_T))
    return {kind: np.array(counts) for kind, counts in lengths.items()}


@pytest.mark.parametrize("augmented", [True, False])
def test_estimated_lengths_and_packing_are_those_of_real_prompts(shared_data: Path, augmented: bool) -> None:
    prompts = PromptsBlock()
    real = real_lengths(shared_data, prompts, augmented)
    full = {kind: prompt_tokens(prompts, kind, augmented) for kind in (False, True)}
    for kind, counts in real.items():
        assert full[kind] == pytest.approx(counts.mean(), rel=0.1)
    mixed = np.random.default_rng(0).choice(np.concatenate([real[False], real[False], real[True]]), 1024)
    rows = pack_window(mixed, 1600)
    estimate = samples_per_row([full[False], full[False], full[True]], 1600, 1024)
    assert estimate == pytest.approx(1024 / len(rows), rel=0.12)


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


def shipped(name: str, *overrides: tuple[str, str]) -> RunConfig:
    root = Path(__file__).resolve().parents[2]
    return read_config(root / "configs" / f"llama4rec_{name}.yaml", list(overrides))


def status(plan: Plan, name: str) -> str:
    return next(check.status for check in plan.checks if check.name == name)


def text(plan: Plan, name: str) -> str:
    return next(check.text for check in plan.checks if check.name == name)


@pytest.mark.parametrize("name", ["7b", "13b"])
def test_7b_and_13b_fit_16_gpus_of_80_gib(name: str) -> None:
    plan = make_plan(shipped(name, ("data.path", "/nowhere/ml-1m")), 16, 80)
    assert plan.ok and status(plan, "training memory") == "ok"
    # What is not there yet is told and fails nothing: a plan is made on a login node.
    assert status(plan, "data") == "note" and "/nowhere/ml-1m" in text(plan, "data")


def test_70b_does_not_fit_16_gpus_and_each_remedy_makes_it_fit() -> None:
    plan = make_plan(shipped("70b"), 16, 80)
    assert not plan.ok and status(plan, "training memory") == "FAIL"
    told = text(plan, "training memory")
    assert "parallel.offload_optimizer: true" in told and "32 GPUs" in told
    assert make_plan(shipped("70b", ("parallel.offload_optimizer", "true")), 16, 80).ok
    assert make_plan(shipped("70b"), 32, 80).ok


def test_70b_says_what_the_bulk_pass_needs() -> None:
    plan = make_plan(shipped("70b"), 32, 80)
    assert status(plan, "bulk memory") == "note" and "over 2 GPUs" in text(plan, "bulk memory")
    assert status(make_plan(shipped("70b"), 32, 160), "bulk memory") == "ok"


def test_remedies_name_checkpointing_and_shorter_rows() -> None:
    plan = make_plan(shipped("13b", ("training.context", "4096"), ("training.pack_length", "4096")), 16, 48)
    told = text(plan, "training memory")
    assert "training.gradient_checkpointing: true" in told and "training.pack_length: " in told
    shorter = told.split("training.pack_length: ")[1].split(";")[0]
    assert make_plan(shipped("13b", ("training.pack_length", shorter)), 16, 48).ok


def test_rows_that_ranks_cannot_share_fail_with_the_numbers_that_can() -> None:
    plan = make_plan(shipped("7b"), 12, 80)
    assert not plan.ok
    assert text(plan, "batch").endswith("can't be shared evenly by 12 ranks: set it to 12 or 24")
    assert make_plan(shipped("7b", ("training.rows_per_step", "24")), 12, 80).ok


@pytest.mark.parametrize(
    ("name", "value", "check", "told"),
    [
        ("prompts.rating_template", "rating.yaml", "templates", "no such file"),
        ("training.context", "8192", "lengths", "beyond the model's 4096 positions"),
        ("bulk.max_model_len", "5000", "lengths", "beyond the model's 4096 positions"),
    ],
)
def test_failing_checks(name: str, value: str, check: str, told: str) -> None:
    plan = make_plan(shipped("7b", (name, value)), 16, 80)
    assert not plan.ok and status(plan, check) == "FAIL" and told in text(plan, check)


@pytest.mark.parametrize(
    ("name", "value", "check", "told"),
    [
        ("prompts.history_items", "150", "lengths", "raise it or lower prompts.history_items"),
        ("bulk.max_model_len", "1024", "lengths", "bulk.max_model_len is 1024: raise it"),
        ("training.warmup_steps", "5000", "schedule", "lower training.warmup_steps"),
        ("model.path", "someone/unheard-of", "model", "memory was not checked"),
    ],
)
def test_notes_do_not_fail(name: str, value: str, check: str, told: str) -> None:
    plan = make_plan(shipped("7b", (name, value)), 16, 80)
    assert plan.ok and status(plan, check) == "note" and told in text(plan, check)


def test_a_data_folder_that_is_there(tmp_path: Path) -> None:
    plan = make_plan(shipped("7b", ("data.path", str(tmp_path))), 16, 80)
    assert status(plan, "data") == "ok"


def test_the_quickstart_on_a_laptop() -> None:
    plan = make_plan(shipped("quickstart"), 0, 8)
    assert plan.ok and plan.title == "llama4rec_quickstart on 2 CPU ranks that share 8.0 GiB"
    assert not make_plan(shipped("quickstart"), 0, 2).ok
    assert not make_plan(shipped("quickstart", ("parallel.cpu_ranks", "3")), 0, 8).ok


@pytest.mark.parametrize(("gpus", "memory", "node"), [(-1, 80, 8), (1, 0, 8), (1, 80, 0)])
def test_a_cluster_that_cannot_be(gpus: int, memory: float, node: int) -> None:
    with pytest.raises(UserError, match="must be"):
        make_plan(shipped("7b"), gpus, memory, node)


def test_the_printed_plan() -> None:
    lines = format_plan(make_plan(shipped("70b"), 16, 80)).split("\n")
    assert lines[0] == "llama4rec_70b on 16 GPUs of 80 GiB, 2 nodes of 8"
    numbers = [line.split(".")[0].strip() for line in lines if line[:3].strip().isdigit()]
    assert numbers == [str(number) for number in range(1, 9)]
    assert lines[-1] == "Verdict: does not fit: training memory."
    assert any("68,976,648,192" in line for line in lines)
    assert format_plan(make_plan(shipped("7b"), 16, 80)).endswith("Verdict: fits.")
