"""Run by test_planning_frozen.py on every rank: two ZeRO-3 steps beside a frozen LLM, then the bytes of all
live tensors of rank 0.

usage: zero_frozen_memory.py MODEL OUT DTYPE BUCKET {project,lora}
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from recloom.trainer.config import ModelBlock, ParallelBlock
from recloom.trainer.engine import Engine, deepspeed_json, load_partitioned, start_ranks
from recloom.trainer.systems.a_llmrec.project import adapted
from recloom.trainer.systems.a_llmrec.projection import ProjectedLM, Projection, Widths
from recloom.trainer.systems.a_llmrec.settings import LoraBlock

TOKENS = 16
USER_WIDTH, ITEM_WIDTH = 50, 128


def main() -> None:
    model_path, out, dtype, bucket, kind = sys.argv[1:]
    torch.set_num_threads(1)
    parallel = ParallelBlock(zero_stage=3)
    rank, world_size = start_ranks(parallel)
    training = LoraBlock(rows_per_step=world_size)
    model = ModelBlock(path=model_path, dtype=dtype, attention="sdpa")  # type: ignore[arg-type]
    ds_config = deepspeed_json(model, training, parallel, world_size)
    # DeepSpeed's own bucket is a gigabyte, beside which a small model's bytes would not show.
    ds_config["zero_optimization"]["reduce_bucket_size"] = int(bucket)
    llm = load_partitioned(model_path, ds_config, model, False, frozen=True)
    network = projected(llm) if kind == "project" else adapted(llm, training)
    inputs = {"input_ids": torch.zeros(1, TOKENS, dtype=torch.long)}
    inputs |= soft_inputs() if kind == "project" else {}
    engine = Engine(network, ds_config)
    for _ in range(2):
        engine.backward(engine(**inputs, use_cache=False).logits.float().square().mean())
        engine.step(1e-4)
    del inputs
    gc.collect()
    if rank == 0:
        Path(out).write_text(json.dumps(live_bytes()))
    sys.stdout.flush()
    os._exit(0)


def projected(llm: Any) -> ProjectedLM:
    hidden = llm.config.hidden_size
    projection = Projection(Widths(USER_WIDTH, ITEM_WIDTH, hidden, hidden))
    return ProjectedLM(llm, projection, torch.zeros(1, USER_WIDTH), torch.zeros(1, ITEM_WIDTH))


def soft_inputs() -> dict[str, torch.Tensor]:
    """The user at the start, the item behind it."""
    soft_BT = torch.full((1, TOKENS), -1)
    soft_BT[0, :2] = torch.arange(2)
    nothing = torch.zeros(1, dtype=torch.long)
    return {"soft_BT": soft_BT, "user_rows_U": nothing, "items_J": nothing}


def live_bytes() -> int:
    tensors = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


main()
