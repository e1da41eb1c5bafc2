"""Run by test_tensor_parallel.py on every rank: trainings under ZeRO and tensor parallelism, one a case.

usage: tensor_ranks.py OUT TENSOR CASE...    a case is MODEL_FOLDER:ZERO_STAGE:CHECKPOINTING[:OPTION]

Leaves OUT/N.json (losses, gradient norms, validation loss, number of weights of a rank before ZeRO) and the
export OUT/N of each case. OPTION is of OPTIONS; or split: each rank reads rows of its own, which must fail.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

sys.path.insert(0, str(Path(__file__).parent))
from fixed_samples import SmallVocabulary, training_block

from recloom.trainer.callbacks.evaluation import Evaluation
from recloom.trainer.config import ModelBlock, ParallelBlock, TrainingBlock
from recloom.trainer.engine import Engine, deepspeed_json, load_partitioned, start_ranks
from recloom.trainer.loop import Loop
from recloom.trainer.loss import AnswerLoss
from recloom.trainer.parallel_layout import RankLayout
from recloom.trainer.shard_training import make_stream

SAVED_STEP = 2
OPTIONS: dict[str, dict[str, Any]] = {
    "split": {},
    "hpz": {"hpz_size": 2},
    "overlap": {"overlap_communication": True},
    "offload_parameters": {"offload_parameters": True},
}


def make_loop(engine: Engine, training: TrainingBlock, layout: RankLayout) -> Loop:
    stream = make_stream(training, 3, SmallVocabulary(), layout)
    return Loop(engine, stream, training, AnswerLoss("packed", engine.device, engine.vocabulary), [])


def train(loop: Loop, steps: int | None = None) -> list[list[float]]:
    """Losses and gradient norms of the steps that are left, or of `steps`."""
    rows: list[list[float]] = []
    while loop.stream.epoch < loop.training.epochs:
        for batch in loop.stream:
            record = loop.train_step(batch, 0.0, 0.0)
            loop.step += 1
            rows.append([record.loss, record.gradient_norm])
            if len(rows) == steps:
                return rows
    return rows


def run_case(out: Path, tensor: int, world_size: int, case: str) -> dict[str, Any]:
    path, stage, checkpointing, *option = case.split(":")
    changes = OPTIONS[option[0]] if option else {}
    parallel = ParallelBlock(zero_stage=cast(Any, int(stage)), tensor=tensor, **changes)
    training, model = training_block(), ModelBlock(path=path, dtype="float32")
    ds_config = deepspeed_json(model, training, parallel, world_size)
    engine = Engine(load_partitioned(path, ds_config, model, checkpointing == "yes"), ds_config)
    held = sum(getattr(p, "ds_numel", p.numel()) for p in engine.engine.module.parameters())
    rank = engine.layout.rank
    loop = make_loop(engine, training, RankLayout(rank, world_size) if option == ["split"] else engine.layout)
    rows = train(loop, SAVED_STEP)
    engine.save(out.with_suffix(".checkpoints"), loop.step, loop.state(), keep=1)
    before = engine.trained_state()  # Laser does this in the midst of a training: it must disturb nothing
    train(loop, 1)  # and a step that the checkpoint takes back
    state = engine.load(out.with_suffix(".checkpoints"))
    assert state is not None
    loop.load_state(state)
    again = engine.trained_state()
    assert all(torch.equal(before[name], again[name]) for name in before)
    rows += train(loop)
    valid = make_stream(training, 3, SmallVocabulary(), engine.layout)
    loss = Evaluation("valid", valid, 1, cast(Any, None)).validation_loss(loop)
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    engine.export(out, tokenizer)
    engine.close()
    return {"steps": rows, "validation": loss, "held": held}


def main() -> None:
    out, tensor, cases = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    rank, world_size = start_ranks(ParallelBlock(tensor=tensor))
    for number, case in enumerate(cases):
        found = run_case(out / str(number), tensor, world_size, case)
        if rank == 0:
            (out / f"{number}.json").write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


main()
