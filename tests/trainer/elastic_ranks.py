"""Run by test_elastic.py on every rank: a part of each training, from the checkpoint of the ranks before.

usage: elastic_ranks.py OUT TENSOR UNTIL PIECE CASE...    a case is MODEL_FOLDER:ZERO_STAGE[:DTYPE]

Goes on with OUT/N/checkpoints of each case until step UNTIL (0: the end), appends the steps to
OUT/N/steps.jsonl and saves. At the end the validation loss follows as a last line, and OUT/N/model.
PIECE: weights that are updated at a time (0: as many as without a GPU).
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
from recloom.trainer.config import ModelBlock, ParallelBlock
from recloom.trainer.engine import Engine, deepspeed_json, load_partitioned, start_ranks
from recloom.trainer.loop import Loop
from recloom.trainer.loss import AnswerLoss
from recloom.trainer.shard_training import make_stream


def train(loop: Loop, until: int) -> list[dict[str, Any]]:
    """The steps up to `until`: loss, gradient norm, and the samples of all ranks."""
    rows: list[dict[str, Any]] = []
    while loop.stream.epoch < loop.training.epochs and loop.step != until:
        for batch in loop.stream:
            record = loop.train_step(batch, 0.0, 0.0)
            loop.step += 1
            rows.append({"loss": record.loss, "norm": record.gradient_norm, "samples": batch.sample_ids})
            if loop.step == until:
                break
    return rows


def run_case(out: Path, tensor: int, world_size: int, until: int, piece: int, case: str) -> None:
    path, stage, *dtype = case.split(":")
    parallel = ParallelBlock(zero_stage=cast(Any, int(stage)), tensor=tensor)
    training = training_block()
    model = ModelBlock(path=path, dtype=cast(Any, dtype[0] if dtype else "float32"))
    ds_config = deepspeed_json(model, training, parallel, world_size)
    if piece:
        ds_config["zero_optimization"]["sub_group_size"] = piece
    engine = Engine(load_partitioned(path, ds_config, model, False), ds_config)
    stream = make_stream(training, 3, SmallVocabulary(), engine.layout)
    loop = Loop(engine, stream, training, AnswerLoss("packed", engine.device, engine.vocabulary), [])
    state = engine.load(out / "checkpoints")
    if state is not None:
        loop.load_state(state)
    rows = train(loop, until)
    if until:
        engine.save(out / "checkpoints", loop.step, loop.state(), keep=2)
    else:
        valid = make_stream(training, 3, SmallVocabulary(), engine.layout)
        rows.append({"validation": Evaluation("", valid, 1, cast(Any, None)).validation_loss(loop)})
        engine.export(out / "model", SimpleNamespace(save_pretrained=lambda folder: None))
    engine.close()
    if engine.layout.rank == 0:
        with open(out / "steps.jsonl", "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    out, cases = Path(sys.argv[1]), sys.argv[5:]
    tensor, until, piece = map(int, sys.argv[2:5])
    torch.set_num_threads(1)
    _, world_size = start_ranks(ParallelBlock(tensor=tensor))
    for number, case in enumerate(cases):
        run_case(out / str(number), tensor, world_size, until, piece, case)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
