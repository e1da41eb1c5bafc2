"""Checkpoints for other ranks than those that wrote them: DeepSpeed's universal form, made once.

`universal/step_N` beside the checkpoints holds each weight whole, with its optimizer's state; a manifest,
written last, says what it was made from. The next checkpoint drops it.

    python -m recloom.trainer.universal CHECKPOINT OUT    what rank 0 starts, in a process of its own
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from recloom.data_shards.artifacts import MANIFEST, file_sha256, read_manifest, write_manifest
from recloom.data_shards.errors import UserError
from recloom.trainer.checkpoints import UNIVERSAL, Saved
from recloom.trainer.pickles import data_only

CONVERTER = "deepspeed.checkpoint.ds_to_universal"
WORKERS = 4  # processes of the converter at most
TOLD_CHARACTERS = 300


def universal_path(saved: Saved) -> Path:
    return saved.folder / UNIVERSAL / saved.tag


def is_converted(saved: Saved) -> bool:
    """Whether the universal form of this very checkpoint is there; its bytes are not looked at."""
    try:
        return bool(read_manifest(universal_path(saved))["source"] == source_of(saved.path))
    except (UserError, KeyError):
        return False


def source_of(path: Path) -> str | None:
    """What tells a checkpoint from another one of the same step."""
    manifest = path / MANIFEST
    return file_sha256(manifest) if manifest.is_file() else None


@dataclass(frozen=True)
class Conversion:
    """One that is under way, in a process and a folder of its own."""

    saved: Saved
    temporary: Path
    process: subprocess.Popen[bytes]

    def wait(self, seconds: float) -> bool:
        """Wait so long at most; True when it has ended and what it made is in its place.

        Raises UserError when it failed.
        """
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        if self.process.returncode != 0:
            raise UserError(
                f"{self.saved.path}: DeepSpeed can't convert the checkpoint for other ranks "
                f"({last_line(self.temporary / 'log.txt')}): start {self.saved.ranks}."
            )
        target = universal_path(self.saved)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        os.replace(self.temporary / self.saved.tag, target)
        shutil.rmtree(self.temporary, ignore_errors=True)
        return True


def start_conversion(saved: Saved) -> Conversion:
    """Start a process that makes the universal form."""
    # A folder of its own: the process of a start that was killed may still be writing.
    for old in saved.folder.glob(f"{UNIVERSAL}.*"):
        shutil.rmtree(old, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{UNIVERSAL}.", dir=saved.folder))
    command = [sys.executable, "-m", "recloom.trainer.universal", str(saved.path), str(temporary / saved.tag)]
    with open(temporary / "log.txt", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    return Conversion(saved, temporary, process)


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:TOLD_CHARACTERS].rstrip(".") if lines else "it was killed without a word"


def make_universal(checkpoint: Path, out: Path) -> None:
    """Convert, and write the manifest; this process is that of the converter."""
    from recloom.trainer.engine import saved_classes

    workers = str(max(1, min(WORKERS, len(os.sched_getaffinity(0)))))
    sys.argv = [CONVERTER, "--input_folder", str(checkpoint), "--output_folder", str(out)]
    sys.argv += ["--num_extract_workers", workers, "--num_merge_workers", workers]
    # The converter has no function to call, and reads whole objects where it is not held to data.
    with data_only(saved_classes()):
        runpy.run_module(CONVERTER, run_name="__main__", alter_sys=True)  # its workers look there
    for path in sorted((out / "zero").rglob("*.pt")):
        name_weight(path)
    write_manifest(out, source=source_of(checkpoint))


def name_weight(path: Path) -> None:
    """Put a bare tensor under the name it has in files of divided weights.

    Of ZeRO-3 without tensor parallelism the converter writes bare tensors, and when DeepSpeed loads, it takes
    a rank's part of a layer out of named ones only.
    """
    if path.stem not in ("fp32", "exp_avg", "exp_avg_sq"):
        return
    value = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(value, torch.Tensor):
        torch.save({"param": value}, path)


if __name__ == "__main__":
    make_universal(Path(sys.argv[1]), Path(sys.argv[2]))
