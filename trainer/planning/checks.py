"""The pre-flight checks of a plan, one function each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recloom.data_shards.errors import UserError
from recloom.data_shards.textualize import attributes, listwise, rating
from recloom.data_shards.textualize.template import load_template
from recloom.trainer.config_rules import named_paths
from recloom.trainer.planning.changes import fitting_changes
from recloom.trainer.planning.cluster import Cluster, gib
from recloom.trainer.planning.memory import (
    BYTES,
    GIB,
    RESERVE,
    Setup,
    bulk_memory,
    cached_tokens,
    needed_tensor_parallel,
    training_memory,
)
from recloom.trainer.planning.model_size import ModelSize
from recloom.trainer.planning.tokens import Corpus, answer_tokens
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig

Status = Literal["ok", "note", "FAIL"]


@dataclass(frozen=True)
class Check:
    """One pre-flight check. A note is something that can't be checked here, or that a user should know."""

    name: str
    status: Status
    text: str


def check_data(config: Llama4RecConfig) -> Check:
    """Missing files are a note: a plan is often made before the data are there."""
    paths = list(named_paths(config.data.model_dump()))
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        return Check("data", "note", f"{', '.join(missing)}: not there yet, needed before the run")
    if paths:
        return Check("data", "ok", f"{', '.join(map(str, paths))}: there")
    return Check("data", "ok", f"no path is set, {config.data.source} fetches its files at first use")


def check_templates(config: Llama4RecConfig) -> Check:
    prompts = config.prompts
    try:
        load_template(prompts.listwise_template, listwise.FAMILY)
        load_template(prompts.rating_template, rating.FAMILY)
        load_template(prompts.attributes_template, attributes.FAMILY)
    except UserError as error:
        return Check("templates", "FAIL", str(error).rstrip("."))
    return Check("templates", "ok", f"{prompts.listwise_template}, {prompts.rating_template}")


def check_rows(config: Llama4RecConfig, cluster: Cluster) -> Check:
    rows, ranks = config.training.rows_per_step, cluster.ranks
    if rows % ranks == 0:
        return Check("batch", "ok", f"{rows} rows a step, {rows // ranks} on each of {ranks} ranks")
    near = sorted({max(1, rows // ranks) * ranks, -(-rows // ranks) * ranks})
    return Check(
        "batch",
        "FAIL",
        f"training.rows_per_step = {rows} can't be shared evenly by {ranks} ranks: "
        f"set it to {' or '.join(map(str, near))}",
    )


def check_lengths(config: Llama4RecConfig, model: ModelSize | None, prompts: list[Corpus]) -> Check:
    """Prompts (estimated) and rows against the context, the model and vLLM's limit."""
    training, bulk = config.training, config.bulk
    longest = max(corpus.longest_tokens for corpus in prompts)
    asked = longest - answer_tokens(config.prompts) + config.rank.max_answer_tokens
    positions = model.positions if model else None
    if positions is not None and training.context > positions:
        text = f"training.context = {training.context} is beyond the model's {positions} positions"
        return Check("lengths", "FAIL", f"{text}: lower it")
    if positions is not None and (bulk.max_model_len or 0) > positions:
        text = f"bulk.max_model_len = {bulk.max_model_len} is beyond the model's {positions} positions"
        return Check("lengths", "FAIL", f"{text}: lower it")
    if longest > training.context:
        text = f"training prompts may reach {longest} tokens, training.context is {training.context}"
        return Check("lengths", "note", f"{text}: raise it or lower prompts.history_items")
    if bulk.max_model_len is not None and asked > bulk.max_model_len:
        text = f"prompt and answer may reach {asked} tokens, bulk.max_model_len is {bulk.max_model_len}"
        return Check("lengths", "note", f"{text}: raise it")
    return Check("lengths", "ok", f"prompts up to about {longest} tokens, context {training.context}")


def check_schedule(config: Llama4RecConfig, prompts: list[Corpus]) -> Check:
    training = config.training
    fewest = min(corpus.steps_per_epoch for corpus in prompts) * training.epochs
    text = f"{training.warmup_steps} warm-up steps of about {fewest}"
    if training.warmup_steps < fewest:
        return Check("schedule", "ok", text)
    text = f"{text}: the learning rate would never come down, lower training.warmup_steps"
    return Check("schedule", "note", text)


def check_model(config: Llama4RecConfig, model: ModelSize | None, where: str) -> Check:
    if model is not None:
        return Check("model", "note" if where.startswith("not") else "ok", f"{config.model.path}: {where}")
    text = "its dimensions are not known here, so memory was not checked: download it first"
    return Check("model", "note", f"{config.model.path}: {where}; {text}")


def check_training(setup: Setup, cluster: Cluster) -> Check:
    total, usable = training_memory(setup).total, cluster.usable
    text = f"about {gib(total)} a rank of {gib(usable)} usable ({gib(cluster.memory)} less {RESERVE:.0%})"
    if total <= usable:
        return Check("training memory", "ok", text)
    if not cluster.has_gpus:
        return Check("training memory", "FAIL", f"{text}: take a smaller model or fewer parallel.cpu_ranks")
    remedy = "; or with ".join(fitting_changes(setup, usable))
    return Check("training memory", "FAIL", f"{text}: it does not fit, but would with {remedy}")


def check_bulk(config: Llama4RecConfig, model: ModelSize, cluster: Cluster) -> Check:
    """The bulk pass runs on one GPU."""
    bulk, name = config.bulk, "bulk memory"
    sequence = bulk.max_model_len or model.positions
    if not cluster.has_gpus:
        cache = int(bulk.kv_cache_gb * GIB / model.cache_bytes(BYTES[bulk.dtype]))
        text = f"{gib(2 * model.parameters)} of weights and a cache of {cache:,} tokens"
        if cache >= sequence:
            return Check(name, "ok", text)
        return Check(name, "FAIL", f"{text}, the longest sequence has {sequence:,}: raise bulk.kv_cache_gb")
    budget = bulk.gpu_memory_utilization * cluster.memory
    memory = bulk_memory(model, bulk.dtype, budget, 1)
    tokens = cached_tokens(model, bulk.dtype, memory, 1)
    text = f"{gib(memory.weights)} of weights on one GPU"
    if tokens >= sequence:
        return Check(name, "ok", f"{text}, {gib(memory.cache)} or {tokens:,} tokens of cache")
    remedy = bulk_remedy(config, model, budget, sequence)
    return Check(name, "note", f"{text} do not fit its {gib(budget)}: {remedy}")


def bulk_remedy(config: Llama4RecConfig, model: ModelSize, budget: float, sequence: int) -> str:
    """The bulk pass itself has no tensor parallelism."""
    bulk = config.bulk
    needed = needed_tensor_parallel(model, bulk.dtype, budget, sequence)
    gpus = "more GPUs than it can be split over" if needed is None else f"{needed} GPUs"
    missing = sequence * model.cache_bytes(BYTES[bulk.dtype]) - bulk_memory(model, bulk.dtype, 0, 1).cache
    return (
        f"vLLM would need tensor parallelism over {gpus}, which the bulk pass does not do; "
        f"run the stages augment and rank on a GPU of {gib(missing / bulk.gpu_memory_utilization)} or more"
    )
