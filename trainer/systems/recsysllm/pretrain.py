"""Stages pretrain_*: blank infilling on all ranks (training phase)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist

from recloom.data_shards.artifacts import atomic_write_bytes, atomic_write_json, read_manifest
from recloom.data_shards.blank_rows import BlankRows
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import SlotPosition
from recloom.data_shards.shards import ShardReader
from recloom.data_shards.spans import token_texts
from recloom.trainer.engine import Engine, embedding_mean, embedding_row, embedding_scale, load_partitioned
from recloom.trainer.models import load_tokenizer, quiet_transformers, resolve_model
from recloom.trainer.shard_training import (
    DeepSpeedSettings,
    Lesson,
    check_shards,
    open_shards,
    set_threads,
    train_lesson,
)
from recloom.trainer.stages import Run
from recloom.trainer.systems.recsysllm.attention import BLANKS
from recloom.trainer.systems.recsysllm.corpus import families_of, make_renderer
from recloom.trainer.systems.recsysllm.methods import Method
from recloom.trainer.systems.recsysllm.network import (
    BlankInfiller,
    Sizes,
    load_tables,
    mask_ids,
    save_tables,
)
from recloom.trainer.systems.recsysllm.settings import LoraBlock, RecSysLLMConfig

ADAPTER, ADAPTER_SETTINGS = "adapter.safetensors", "adapter.json"
LLM = "llm."


def out_folder(run: Run[RecSysLLMConfig], method: Method) -> Path:
    """Checkpoints and logs of a method's training; its `model` folder is the result."""
    return run.path(f"tune/{method.key}")


def run_pretrain(run: Run[RecSysLLMConfig], method: Method) -> None:
    """Train on all families' samples. Called on every rank."""
    config = run.config
    base = resolve_model(config.model.path, run.cache)
    set_threads()
    check_shards(run.path("corpus"))

    def build(ds_config: DeepSpeedSettings) -> BlankInfiller:
        return make_network(config, base, ds_config, make_renderer(run).eos_id)

    def export(engine: Engine, folder: Path) -> None:
        weights = engine.trained_state()
        if dist.get_rank() == 0:
            save_model(engine.engine.module, weights, config.pretrain.lora, base, folder)

    label = f"pretrain {method.key}"
    train_lesson(
        config, config.pretrain, label, make_lesson(run, method), out_folder(run, method), build, export
    )


def make_network(
    config: RecSysLLMConfig, base: str, ds_config: DeepSpeedSettings, end_id: int
) -> BlankInfiller:
    """The language model, partitioned under ZeRO-3, with the tables beside it."""
    settings = config.pretrain
    model = config.model.model_copy(update={"attention": BLANKS})
    is_adapted = settings.lora is not None
    llm = load_partitioned(base, ds_config, model, settings.gradient_checkpointing, frozen=is_adapted)
    words = llm.get_input_embeddings()
    # The longest span counts through where units are tokens: [START] and all of a text.
    sizes = Sizes(words.num_embeddings, words.embedding_dim, settings.context + 2, settings.table_rate)
    if settings.lora is not None:
        adapt(llm, settings.lora)
    network = BlankInfiller(llm, sizes)
    network.start_marks(embedding_mean(llm), embedding_row(llm, end_id), embedding_scale(llm), config.seed)
    for parameter in network.parameters():
        if parameter.requires_grad:  # the engine wants one number format; it keeps its own float32 copies
            parameter.data = parameter.data.to(llm.dtype)
    return network


def adapt(llm: Any, settings: LoraBlock) -> None:
    """Put low-rank updates into the model's layers (Hu et al. 2022), in place."""
    from peft import LoraConfig, inject_adapter_in_model

    modules = settings.modules
    lora = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    inject_adapter_in_model(lora, llm)


class Joined:
    """Several folders of shards as one source of samples."""

    has_slots = False

    def __init__(self, readers: Sequence[ShardReader]) -> None:
        self._readers = readers
        self._starts = np.cumsum([0, *(len(reader) for reader in readers)])
        self.lengths_N = np.concatenate([reader.lengths_N for reader in readers])
        self.num_prompt_N = np.concatenate([reader.num_prompt_N for reader in readers])

    def ids(self, index: int) -> np.ndarray:
        reader, place = self._find(index)
        return reader.ids(place)

    def record(self, index: int) -> dict[str, Any]:
        reader, place = self._find(index)
        return reader.record(place)

    def slots(self, index: int) -> list[SlotPosition]:
        return []

    def _find(self, index: int) -> tuple[ShardReader, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._readers[number], int(index - self._starts[number])


def make_lesson(run: Run[RecSysLLMConfig], method: Method) -> Lesson:
    """The method's families under its masks; the validation loss is of answers alone."""
    from recloom.trainer.preparation import load_data
    from recloom.trainer.systems.recsysllm.objective import BlankLoss

    config, renderer = run.config, make_renderer(run)
    families = method.of(families_of(config, load_data(run)[0]))
    base = resolve_model(config.model.path, run.cache)
    texts = token_texts(vocabulary(load_tokenizer(base)))
    ids = mask_ids(embedding_rows(base))
    remedy = "lower corpus.history_items, corpus.negatives or corpus.review_words"

    def read(part: str) -> Joined:
        folders = [run.path(f"corpus/{family}_{part}") for family in families]
        context, fingerprint = config.pretrain.context, renderer.fingerprint()
        return Joined([open_shards(folder, fingerprint, context, remedy) for folder in folders])

    def rows(source: Joined, answer_share: float) -> BlankRows:
        settings = method.settings(config)
        return BlankRows(source, settings, answer_share, ids, texts, renderer.prefix_ids, config.seed)

    train = read("train")
    valid = read("valid") if config.corpus.valid_samples else None
    return Lesson(
        train,
        valid,
        rows(train, config.pretrain.answer_share),
        rows(valid, 1.0) if valid is not None else None,
        lambda engine: BlankLoss(engine.device),
    )


def vocabulary(tokenizer: Any) -> list[str]:
    """What every token id is written as in the vocabulary."""
    found: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [token or "" for token in found]


def embedding_rows(model_path: str) -> int:
    """Rows of a model's embedding, from its config."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(model_path).vocab_size)


def save_model(
    network: BlankInfiller, weights: dict[str, torch.Tensor], lora: LoraBlock | None, base: str, folder: Path
) -> None:
    """A Hugging Face folder (without LoRA) or the low-rank updates, and the tables beside."""
    save_tables(weights, network.sizes, folder)
    own = {name.removeprefix(LLM): tensor for name, tensor in weights.items() if name.startswith(LLM)}
    if lora is not None:
        own = {name: tensor.cpu().contiguous() for name, tensor in own.items()}
        atomic_write_bytes(folder / ADAPTER, safetensors.torch.save(own))
        atomic_write_json(folder / ADAPTER_SETTINGS, lora.model_dump())
        return
    llm = network.llm
    llm.config.use_cache = True
    with quiet_transformers():
        llm.save_pretrained(folder, state_dict=own)
    load_tokenizer(base).save_pretrained(folder)


def load_model(run: Run[RecSysLLMConfig], method: Method) -> BlankInfiller:
    """The trained model for asking, on a GPU where there is one."""
    from transformers import AutoModelForCausalLM

    folder = out_folder(run, method) / "model"
    read_manifest(folder, verify=True)
    lora = run.config.pretrain.lora
    source = resolve_model(run.config.model.path, run.cache) if lora is not None else str(folder)
    with quiet_transformers():
        llm = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, run.config.model.dtype), attn_implementation="sdpa"
        )
    if lora is not None:
        adapt(llm, lora)
        own = safetensors.torch.load_file(folder / ADAPTER)
        lacking = {name for name, p in llm.named_parameters() if "lora_" in name} - set(own)
        if lacking:
            raise UserError(f"{folder}: the update of {min(lacking)} is missing: train again.")
        llm.load_state_dict(own, strict=False)
    network = load_tables(llm, folder)
    return network.cuda() if torch.cuda.is_available() else network
