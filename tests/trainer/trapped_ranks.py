"""Run by test_security.py on one rank: a checkpoint is loaded and converted, then the same with code in it.

usage: trapped_ranks.py MODEL FOLDER ZERO_STAGE; the code would make FOLDER/touched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from recloom.data_shards.artifacts import file_entry
from recloom.data_shards.errors import UserError
from recloom.trainer import checkpoints
from recloom.trainer.config import ModelBlock, ParallelBlock, TrainingBlock
from recloom.trainer.engine import Engine, deepspeed_json, load_partitioned, start_ranks


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def main(model_path: str, folder: Path, stage: int) -> None:
    torch.set_num_threads(1)
    parallel = ParallelBlock(zero_stage=stage)  # type: ignore[arg-type]
    start_ranks(parallel)
    model = ModelBlock(path=model_path, dtype="bfloat16", attention="sdpa")
    ds_config = deepspeed_json(model, TrainingBlock(rows_per_step=1), parallel, 1)
    engine = Engine(load_partitioned(model_path, ds_config, model, False), ds_config)
    ids = torch.arange(16)[None]
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step(1e-4)
    saved = folder / "checkpoints"
    engine.save(saved, 1, {"step": 1}, keep=1)
    state = engine.load(saved)
    assert state is not None and state["step"] == 1
    assert converted(saved / "step_1", folder / "good") == 0
    set_traps(saved, folder / "touched", engine)
    try:
        engine.load(saved)
    except UserError as error:
        assert "the checkpoint can't be loaded (Weights only load failed" in str(error), error
    else:
        raise AssertionError("the trap was loaded")
    assert converted(saved / "step_1", folder / "bad") != 0
    assert not (folder / "touched").exists()
    os._exit(0)


def converted(checkpoint: Path, out: Path) -> int:
    """The exit code of the converter."""
    command = [sys.executable, "-m", "recloom.trainer.universal", str(checkpoint), str(out)]
    return subprocess.run(command, capture_output=True).returncode


def set_traps(saved: Path, touched: Path, engine: Engine) -> None:
    """Put code into every file, and make manifest and `latest.json` fit it."""
    path = saved / "step_1"
    for file in path.glob("*.pt"):
        states = torch.load(file, map_location="cpu", weights_only=False)
        torch.save({**states, "trap": Touch(touched)}, file)
        torch.load(file, map_location="cpu", weights_only=False)
        touched.unlink()  # it works
    files = {str(file.relative_to(path)): file_entry(file) for file in checkpoints.files_of(path)}
    checkpoints.complete(saved, 1, engine.layout, files, 1)


main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
