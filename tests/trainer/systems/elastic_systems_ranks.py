"""Run by test_elastic_systems.py on every rank: what a system trains, from the checkpoint of other ranks.

usage: elastic_systems_ranks.py OUT TENSOR UNTIL NETWORK:ZERO_STAGE...

Goes on with OUT/N of each case until step UNTIL and saves. Each rank also trains on all rows in plain torch,
from the start, and compares the losses.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from tensor_systems_ranks import JOBS, RATE, ROWS, STEPS, TOLERANCE, check_state, plain_training

from recloom.trainer.config import ModelBlock, ParallelBlock, TrainingBlock
from recloom.trainer.engine import Engine, deepspeed_json, start_ranks


def check(case: str, tensor: int, until: int, out: Path, world_size: int) -> None:
    name, stage = case.split(":")
    job, network = JOBS[name], JOBS[name].make().train()
    plain = copy.deepcopy(network)
    expected = plain_training(job, plain)
    training = TrainingBlock(learning_rate=RATE, rows_per_step=ROWS, gradient_clipping=1.0)
    parallel = ParallelBlock(zero_stage=cast(Any, int(stage)), tensor=tensor)
    ds_config = deepspeed_json(ModelBlock(path="x", dtype="float32"), training, parallel, world_size)
    engine = Engine(network, ds_config)
    state = engine.load(out)
    for step in range(state["step"] if state else 0, until):
        total = torch.zeros(())
        for number in range(engine.layout.data_rank, ROWS, engine.layout.data_size):
            loss = job.loss(engine, job.row(10 * step + number), engine.vocabulary)
            total += loss.detach() / ROWS
            engine.backward(loss)
            engine.step(RATE)
        dist.all_reduce(total)
        off = abs(total.item() / tensor - expected[step])
        assert off < TOLERANCE * max(1, expected[step]), (case, step, total.item() / tensor, expected)
    if until < STEPS:
        engine.save(out, until, {"step": until}, keep=1)
    else:
        weights = engine.trained_state()
        if engine.layout.rank == 0:
            check_state(weights, plain, case)
    engine.close()


def main() -> None:
    out, tensor, until, cases = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    torch.set_num_threads(1)
    _, world_size = start_ranks(ParallelBlock(tensor=tensor))
    for number, case in enumerate(cases):
        check(case, tensor, until, out / str(number), world_size)
    sys.stdout.flush()
    dist.barrier()
    os._exit(0)


main()
