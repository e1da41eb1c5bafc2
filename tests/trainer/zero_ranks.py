"""Run by test_engine.py on every rank: ten ZeRO steps, losses to a file.

usage: zero_ranks.py MODEL OUT ZERO_STAGE CHECKPOINTING
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from recloom.data_shards.stream import PackedStream
from recloom.trainer.config import ModelBlock, ParallelBlock, TrainingBlock
from recloom.trainer.engine import Engine, deepspeed_json, load_partitioned, start_ranks
from recloom.trainer.loop import Loop
from recloom.trainer.loss import AnswerLoss

sys.path.insert(0, str(Path(__file__).parent))
from fixed_samples import FixedSamples, training_block  # noqa: E402


def main() -> None:
    model_path, out, stage, checkpointing = sys.argv[1:]
    torch.set_num_threads(1)
    parallel = ParallelBlock(zero_stage=int(stage))
    rank, world_size = start_ranks(parallel)
    training: TrainingBlock = training_block()
    model = ModelBlock(path=model_path, dtype="float32")
    ds_config = deepspeed_json(model, training, parallel, world_size)
    engine = Engine(load_partitioned(model_path, ds_config, model, checkpointing == "yes"), ds_config)
    stream = PackedStream(
        FixedSamples(), training.pack_length, training.rows_per_step, 16, 3, rank, world_size
    )
    loop = Loop(engine, stream, training, AnswerLoss("packed", engine.device), [])
    rows = []
    for _ in range(training.epochs):
        for batch in stream:
            record = loop.train_step(batch, 0.0, 0.0)
            loop.step += 1
            rows.append([record.loss, record.gradient_norm])
    if rank == 0:
        Path(out).write_text(json.dumps(rows))
    sys.stdout.flush()
    os._exit(0)


main()
