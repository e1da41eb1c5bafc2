"""RecLoom's side of benchmarks/tuning.py, on every rank: packed rows, logits of answers only."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from work import WARM_STEPS, Measured, PartClock, Work, gib, leave, mean_loss

from recloom.data_shards.shards import ShardReader
from recloom.data_shards.stream import PackedRow, build_row
from recloom.trainer.config import ModelBlock, ParallelBlock, TrainingBlock
from recloom.trainer.engine import Engine, deepspeed_json, load_partitioned, start_ranks
from recloom.trainer.loop import Loop
from recloom.trainer.loss import AnswerLoss, model_inputs
from recloom.trainer.shard_training import make_stream, set_threads


def example_loss(engine: Engine, row: PackedRow) -> float:
    everything = torch.arange(len(row.ids_T))
    with torch.no_grad():
        logits = engine(**model_inputs(row, everything, "packed", engine.device)).logits[0]
    return mean_loss(logits, row.labels_T)


def main() -> None:
    work = Work.read()
    set_threads()
    parallel = ParallelBlock(zero_stage=3)
    rank, world_size = start_ranks(parallel)
    training = TrainingBlock(
        epochs=100,
        learning_rate=1e-5,
        warmup_steps=0,
        pack_length=work.pack_length,
        context=work.pack_length,
        rows_per_step=work.rows,
        gradient_checkpointing=False,
    )
    block = {"path": work.model, "dtype": work.dtype, "liger": work.liger, "compile": work.compile}
    model = ModelBlock.model_validate(block)
    ds_config = deepspeed_json(model, training, parallel, world_size)
    engine = Engine(load_partitioned(work.model, ds_config, model, False), ds_config)
    source = ShardReader(Path(work.corpus))
    losses = [example_loss(engine, build_row(source, [n])) for n in range(work.checked)]
    stream = make_stream(training, 0, source, engine.layout, None)
    clock = PartClock()
    clock.watch(engine.engine)
    loop = Loop(engine, stream, training, AnswerLoss("packed", engine.device, engine.vocabulary), [])
    records, begin = [], time.perf_counter()
    for batch in stream:
        clock.is_on = loop.step + 1 == WARM_STEPS + work.steps
        records.append(loop.train_step(batch, begin, 0.0))  # the wait for data counts
        loop.step, begin = loop.step + 1, time.perf_counter()
        if clock.is_on:
            break
    if rank == 0:
        timed = records[WARM_STEPS:]
        parts = clock.parts(records[-1].seconds)
        Measured([r.seconds for r in timed], [r.tokens for r in timed], 0.0, parts, losses, gib()).write(work)
    leave()


main()
