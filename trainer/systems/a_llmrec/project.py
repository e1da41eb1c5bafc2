"""Stages project_* and lora: what is trained against the LLM, on all ranks.

Shapes: M questions of training and validation, I items, D and E widths of their vectors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from recloom.data_shards.artifacts import atomic_write_json
from recloom.trainer.engine import Engine, embedding_scale, load_partitioned
from recloom.trainer.models import resolve_model
from recloom.trainer.shard_training import DeepSpeedSettings, train
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec.methods import METHODS
from recloom.trainer.systems.a_llmrec.projection import ProjectedLM, Projection, Widths, save_projection
from recloom.trainer.systems.a_llmrec.prompts import load_cold, load_states, make_renderer
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig, LoraBlock, MethodName
from recloom.trainer.systems.a_llmrec.vectors import item_table, user_table

PREFIX = "projection."


def out_folder(run: Run[ALLMRecConfig], name: MethodName) -> Path:
    """Checkpoints and logs of a trained method; its `model` folder is the result."""
    return run.path(f"tune/{name}")


def run_project(run: Run[ALLMRecConfig], name: MethodName) -> None:
    """Train F_U and F_I with the LLM frozen (eq. 8). Called on every rank."""
    config, settings = run.config, run.config.project
    base = resolve_model(config.model.path, run.cache)
    users_MD, items_IE = training_tables(run, name)

    def build(ds_config: DeepSpeedSettings) -> ProjectedLM:
        llm = load_partitioned(base, ds_config, config.model, settings.gradient_checkpointing, frozen=True)
        widths = Widths(
            users_MD.shape[1] if settings.user_vector else None,
            items_IE.shape[1] if settings.item_vectors != "none" else None,
            settings.hidden or llm.config.hidden_size,
            llm.get_input_embeddings().embedding_dim,
        )
        projection = Projection(widths)
        projection.match_scale(users_MD, items_IE, settings.token_scale * embedding_scale(llm))
        return ProjectedLM(llm, projection, users_MD, items_IE)

    def export(engine: Engine, folder: Path) -> None:
        weights = engine.trained_state()
        if dist.get_rank() == 0:
            widths = engine.engine.module.projection.widths
            save_projection({k.removeprefix(PREFIX): w for k, w in weights.items()}, widths, folder)

    train(
        config,
        settings,
        f"project {name}",
        make_renderer(run).fingerprint(),
        run.path("prompts/soft"),
        out_folder(run, name),
        build,
        export,
    )


def training_tables(run: Run[ALLMRecConfig], name: MethodName) -> tuple[Tensor, Tensor]:
    """The users' and the items' vectors that a projection is trained on."""
    vectors = METHODS[name][0].vectors
    assert vectors is not None
    return user_table(run, load_states(run)), item_table(run, vectors, load_cold(run))


def run_lora(run: Run[ALLMRecConfig]) -> None:
    """TALLRec: a low-rank update of the LLM on prompts of text. Called on every rank."""
    config, settings = run.config, run.config.lora
    base = resolve_model(config.model.path, run.cache)

    def build(ds_config: DeepSpeedSettings) -> Any:
        llm = load_partitioned(base, ds_config, config.model, settings.gradient_checkpointing, frozen=True)
        return adapted(llm, settings)

    def export(engine: Engine, folder: Path) -> None:
        weights = engine.trained_state()
        if dist.get_rank() == 0:
            engine.engine.module.save_pretrained(folder, state_dict=weights)
            sort_modules(folder / "adapter_config.json")

    train(
        config,
        settings,
        "lora tallrec",
        make_renderer(run).fingerprint(),
        run.path("prompts/text"),
        out_folder(run, "tallrec"),
        build,
        export,
    )


def sort_modules(path: Path) -> None:
    """peft keeps the modules' names as a set, which is written in another order each time."""
    told = json.loads(path.read_text())
    atomic_write_json(path, {**told, "target_modules": sorted(told["target_modules"])})


def adapted(llm: Any, settings: LoraBlock) -> Any:
    """The frozen LLM with trainable low-rank updates (Hu et al. 2022). Inputs must carry gradients."""
    from peft import LoraConfig, get_peft_model

    if settings.gradient_checkpointing:
        llm.enable_input_require_grads()
    lora = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(llm, lora)
