"""Run by test_planning.py on every rank: two ZeRO-3 steps, then the bytes of all live tensors of rank 0.

usage: zero_memory.py MODEL OUT DTYPE
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import torch

from recloom.trainer.config import ModelBlock, ParallelBlock, TrainingBlock
from recloom.trainer.engine import Engine, deepspeed_json, load_partitioned, start_ranks


def main() -> None:
    model_path, out, dtype = sys.argv[1:]
    torch.set_num_threads(1)
    parallel = ParallelBlock(zero_stage=3)
    rank, world_size = start_ranks(parallel)
    training = TrainingBlock(rows_per_step=world_size)
    model = ModelBlock(path=model_path, dtype=dtype, attention="sdpa")  # type: ignore[arg-type]
    ds_config = deepspeed_json(model, training, parallel, world_size)
    engine = Engine(load_partitioned(model_path, ds_config, model, False), ds_config)
    ids = torch.zeros(1, 16, dtype=torch.long)
    for _ in range(2):
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step(1e-4)
    gc.collect()
    if rank == 0:
        Path(out).write_text(json.dumps(live_bytes()))
    sys.stdout.flush()
    os._exit(0)


def live_bytes() -> int:
    tensors = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


main()
