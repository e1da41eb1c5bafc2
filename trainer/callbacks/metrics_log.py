"""`metrics.jsonl` always, TensorBoard events when asked; rank 0 writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from recloom.data_shards.artifacts import atomic_write_text
from recloom.trainer.callbacks.callback import Callback
from recloom.trainer.loop import Loop, StepRecord


class MetricsLog(Callback):
    """One JSON line a step. A resumed run first drops the lines after its checkpoint."""

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl"
        self.events = folder / "tensorboard" if tensorboard else None
        self.file: TextIO | None = None
        self.writer: Any = None

    def on_start(self, loop: Loop) -> None:
        if loop.rank:
            return
        atomic_write_text(self.path, kept_lines(self.path, loop.step))
        self.file = open(self.path, "a")  # noqa: SIM115 - open for the whole run, closed in close()
        if self.events is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.events), purge_step=loop.step + 1)

    def on_step(self, loop: Loop, record: StepRecord) -> None:
        self.write(record.as_dict())

    def write(self, row: dict[str, Any]) -> None:
        """Append a row that holds `step`; does nothing on the other ranks."""
        if self.file is None:
            return
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if self.writer is not None:
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    self.writer.add_scalar(name, value, row["step"])

    def tells(self, step: int, name: str) -> bool:
        """Whether a row of this step has a value of this name, maybe one of an earlier start."""
        if self.file is None:
            return False
        rows = map(json.loads, self.path.read_text().splitlines())
        return any(row["step"] == step and name in row for row in rows)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        if self.writer is not None:
            self.writer.close()


def kept_lines(path: Path, step: int) -> str:
    """The whole lines of an earlier start up to `step`; a torn last line is dropped."""
    if step == 0 or not path.is_file():
        return ""
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return "".join(line for line in lines if json.loads(line)["step"] <= step)
