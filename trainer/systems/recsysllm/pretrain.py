"""Stages pretrain_*: blank infilling on all ranks (training phase)."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from recloom.trainer.engine import Engine, embedding_mean, embedding_row, embedding_scale, load_partitioned
from recloom.trainer.models import resolve_model
from recloom.trainer.shard_training import DeepSpeedSettings, check_shards, set_threads, train_lesson
from recloom.trainer.stages import Run
from recloom.trainer.systems.recsysllm.attention import BLANKS
from recloom.trainer.systems.recsysllm.corpus import make_renderer
from recloom.trainer.systems.recsysllm.lesson import make_lesson
from recloom.trainer.systems.recsysllm.methods import Method
from recloom.trainer.systems.recsysllm.network import BlankInfiller, Sizes
from recloom.trainer.systems.recsysllm.saved import adapt, out_folder, save_model
from recloom.trainer.systems.recsysllm.settings import RecSysLLMConfig


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
