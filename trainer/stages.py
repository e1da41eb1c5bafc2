"""A system is a short list of stages; a stage says what it needs, what it writes and where it runs.

A finished stage leaves `stages/NAME.json` in the run folder, written last: the digest of its
settings and inputs, and its output files. A stage whose marker fits is skipped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from recloom.data_shards.artifacts import atomic_write_json, file_sha256
from recloom.data_shards.errors import UserError
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import config_dict, digest
from recloom.trainer.requests import Request

Where = Literal["process", "ranks", "vllm"]
ConfigT = TypeVar("ConfigT", bound=RunConfig)


@dataclass(frozen=True)
class Run(Generic[ConfigT]):
    """What every stage is given: the settings of a system and where things lie."""

    config: ConfigT
    folder: Path
    cache: Path

    def path(self, name: str) -> Path:
        return self.folder / name


def seed_folder(config: RunConfig, seed: int) -> Path:
    """Where one of several seeds is kept, inside the run folder."""
    return config.folder / f"seed_{seed}"


@dataclass(frozen=True)
class BulkPass:
    """One bulk pass of a vllm stage; the answers come to `bulk/NAME` of the run folder."""

    name: str
    model: Path
    requests: Sequence[Request]


@dataclass(frozen=True)
class Stage:
    """One step of a recipe.

    Attributes:
        where: a plain process, all ranks of a DeepSpeed launch, or plain process plus vLLM passes.
        needs: names of the stages whose outputs it reads.
        settings: the part of the config it depends on, as dotted names.
        outputs: files and folders it writes, relative to the run folder.
        run: the work (called on every rank of a "ranks" stage; after the passes of a "vllm" stage).
        passes: the bulk passes of a "vllm" stage.
        inputs: further content it depends on (a user's files), as a JSON-able value.
    """

    name: str
    title: str
    where: Where
    needs: tuple[str, ...]
    settings: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[Run], None]
    passes: Callable[[Run], list[BulkPass]] | None = None
    inputs: Callable[[Run], Any] = field(default=lambda run: None)


def stage_digests(stages: Sequence[Stage], run: Run) -> dict[str, str]:
    """Each stage's digest over its settings, its inputs and the digests of what it needs."""
    made: dict[str, str] = {}
    values = config_dict(run.config)
    for stage in stages:
        made[stage.name] = digest(
            {
                "stage": stage.name,
                "settings": {name: setting(values, name) for name in stage.settings},
                "inputs": stage.inputs(run),
                "needs": {name: made[name] for name in stage.needs},
            }
        )
    return made


def setting(value: Any, dotted: str) -> Any:
    """What a dotted name stands for in nested dictionaries, None where it is not there."""
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def marker_path(run: Run, name: str) -> Path:
    return run.path(f"stages/{name}.json")


def is_fresh(run: Run, stage: Stage, stage_digest: str) -> bool:
    """True when the stage ended with this digest and its output files are as it left them."""
    path = marker_path(run, stage.name)
    if not path.is_file():
        return False
    try:
        marker = json.loads(path.read_text())
    except ValueError:
        return False
    if marker["digest"] != stage_digest:
        return False
    return all(size_of(run.path(name)) == size for name, size in marker["outputs"].items())


def size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def prepare_outputs(run: Run, stage: Stage, stage_digest: str) -> None:
    """Before a stage starts: forget its marker; drop outputs that belong to other settings.

    Outputs of the same digest stay: they are what an interrupted start got done.
    """
    marker_path(run, stage.name).unlink(missing_ok=True)
    started = run.path(f"stages/{stage.name}.started")
    if started.is_file() and started.read_text() == stage_digest:
        return
    for name in stage.outputs:
        remove(run.path(name))
    started.parent.mkdir(parents=True, exist_ok=True)
    started.write_text(stage_digest)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def finish(run: Run, stage: Stage, stage_digest: str, started: float) -> None:
    """Write the stage's marker with the sizes of the files it left.

    Checksums stand in the manifests beside the files; who reads a file checks it there.
    """
    missing = [name for name in stage.outputs if not run.path(name).exists()]
    if missing:
        raise UserError(f"stage {stage.name}: it ended without writing {missing[0]}: run it again.")
    outputs = {str(path.relative_to(run.folder)): size_of(path) for path in output_files(run, stage)}
    atomic_write_json(
        marker_path(run, stage.name),
        {
            "stage": stage.name,
            "title": stage.title,
            "digest": stage_digest,
            "seconds": round(time.time() - started, 1),
            "outputs": outputs,
        },
    )


def output_files(run: Run, stage: Stage) -> Iterable[Path]:
    for name in stage.outputs:
        path = run.path(name)
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and not p.name.endswith(".tmp"))
        elif path.is_file():
            yield path


def folder_state(path: Path) -> dict[str, list[int]]:
    """Sizes and times of a folder's files: notices a replaced model without reading gigabytes."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    return {str(p.relative_to(path)): [p.stat().st_size, p.stat().st_mtime_ns] for p in files}


def content_of(paths: Iterable[Path]) -> dict[str, str]:
    """Checksums of a user's input files, so that a changed file makes its stage run again."""
    found: dict[str, str] = {}
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                found[str(file)] = file_sha256(file)
    return found
