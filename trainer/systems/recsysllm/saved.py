"""A trained model in files: a Hugging Face folder or low-rank updates, with the tables beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from recloom.data_shards.artifacts import atomic_write_bytes, atomic_write_json, read_manifest
from recloom.data_shards.errors import UserError
from recloom.trainer.models import load_tokenizer, quiet_transformers, resolve_model
from recloom.trainer.stages import Run
from recloom.trainer.systems.recsysllm.methods import Method
from recloom.trainer.systems.recsysllm.network import BlankInfiller, load_tables, save_tables
from recloom.trainer.systems.recsysllm.settings import LoraBlock, RecSysLLMConfig

ADAPTER, ADAPTER_SETTINGS = "adapter.safetensors", "adapter.json"
LLM = "llm."  # before the names of the language model's weights


def out_folder(run: Run[RecSysLLMConfig], method: Method) -> Path:
    """Checkpoints and logs of a method's training; its `model` folder is the result."""
    return run.path(f"tune/{method.key}")


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
