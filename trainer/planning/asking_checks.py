"""The pre-flight check of what the models are asked with: Hugging Face or vLLM, on one device."""

from __future__ import annotations

from collections.abc import Sequence

from recloom.trainer.config import RunConfig
from recloom.trainer.planning.checks import RANKING_MEMORY, Check
from recloom.trainer.planning.cluster import Cluster, gib
from recloom.trainer.planning.memory import (
    BYTES,
    GIB,
    RESERVE,
    bulk_memory,
    cached_tokens,
    needed_tensor_parallel,
)
from recloom.trainer.planning.outline import Asking
from recloom.trainer.planning.shapes import ModelSize


def check_asking(config: RunConfig, asking: Asking, model: ModelSize, cluster: Cluster) -> Check:
    """Asking runs on one GPU, or on a machine without one."""
    if asking.engine == "vllm":
        return check_bulk(config, asking, model, cluster)
    element = BYTES[config.model.dtype]
    held = {
        "weights": element * model.parameters,
        "logits": asking.logits * model.vocab * (8 + element),
        "cache": asking.cached * model.cache_bytes(element),
    }
    needed = sum(held.values())
    memory = cluster.usable * (1 if cluster.has_gpus else cluster.ranks)
    shown = {name: value for name, value in held.items() if name == "weights" or value >= GIB / 10}
    text = joined([f"{gib(value)} of {name}" for name, value in shown.items()])
    text += " on one GPU" if cluster.has_gpus else ""
    if needed <= memory:
        return Check(RANKING_MEMORY, "ok", text)
    larger = gib(needed / (1 - RESERVE))
    place = f"on a GPU of {larger}" if cluster.has_gpus else f"with {larger}"
    remedy = f"lower {asking.lessened_by}, or " if asking.lessened_by else ""
    return Check(
        RANKING_MEMORY,
        "note",
        f"{text} do not fit {gib(memory)}: {remedy}run {asking.stages} {place} or more",
    )


def joined(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(text for text in (", ".join(parts[:-1]), parts[-1]) if text)


def check_bulk(config: RunConfig, asking: Asking, model: ModelSize, cluster: Cluster) -> Check:
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
    remedy = bulk_remedy(config, asking, model, budget, sequence)
    return Check(name, "note", f"{text} do not fit its {gib(budget)}: {remedy}")


def bulk_remedy(config: RunConfig, asking: Asking, model: ModelSize, budget: float, sequence: int) -> str:
    """The bulk pass itself has no tensor parallelism."""
    bulk = config.bulk
    needed = needed_tensor_parallel(model, bulk.dtype, budget, sequence)
    gpus = "more GPUs than it can be split over" if needed is None else f"{needed} GPUs"
    missing = sequence * model.cache_bytes(BYTES[bulk.dtype]) - bulk_memory(model, bulk.dtype, 0, 1).cache
    return (
        f"vLLM would need tensor parallelism over {gpus}, which the bulk pass does not do; "
        f"run {asking.stages} on a GPU of {gib(missing / bulk.gpu_memory_utilization)} or more"
    )
