"""Run by test_gathering.py on every rank: training steps behind a validation gather each layer once.

usage: gathering_ranks.py MODEL
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from recloom.data_shards.stream import build_row
from recloom.trainer.config import ModelBlock, ParallelBlock
from recloom.trainer.engine import Engine, deepspeed_json, load_partitioned, start_ranks
from recloom.trainer.loss import model_inputs

sys.path.insert(0, str(Path(__file__).parent))
from fixed_samples import FixedSamples, training_block

STEPS = 4  # DeepSpeed learns a kind of step in two


def main() -> None:
    path = sys.argv[1]
    torch.set_num_threads(1)
    parallel = ParallelBlock(zero_stage=3)
    _, world_size = start_ranks(parallel)
    training = training_block().model_copy(update={"rows_per_step": world_size})
    model = ModelBlock(path=path, dtype="float32")
    ds_config = deepspeed_json(model, training, parallel, world_size)
    # weights of these layers are small, which DeepSpeed would not give back at all
    ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    engine = Engine(load_partitioned(path, ds_config, model, False), ds_config)
    layers = engine.engine.module.model.layers
    ours = {id(weight) for layer in layers for weight in layer.parameters()}
    gathered = counted(engine.engine.optimizer.parameter_offload.get_param_coordinator(), ours)
    row = build_row(FixedSamples(), [0])
    inputs = model_inputs(row, torch.arange(len(row.ids_T)), "packed", engine.device)

    def work(train: bool) -> list[bool]:
        gathered.clear()
        engine.train(train)
        with torch.set_grad_enabled(train):
            loss = engine(**inputs).logits.mean()
        if train:
            engine.backward(loss)
            engine.step(1e-3)
        return gathered

    for _ in range(2):
        for _ in range(STEPS):
            work(False)
        for _ in range(STEPS):
            passes = work(True)
        assert passes and all(passes), f"of the passes that gathered layers these were forward: {passes}"
    sys.stdout.flush()
    os._exit(0)


def counted(coordinator: Any, weights: set[int]) -> list[bool]:
    """Tells of each gathering of such weights, from now on, whether it was in a forward pass."""
    name, told = "_PartitionedParameterCoordinator__all_gather_params", list[bool]()
    gather = getattr(coordinator, name)

    def watched(params: Any, forward: bool) -> None:
        if any(id(param) in weights for param in params):
            told.append(forward)
        gather(params, forward)

    setattr(coordinator, name, watched)
    return told


main()
