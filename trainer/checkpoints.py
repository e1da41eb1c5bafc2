"""The folder of a training's checkpoints: which are whole, which one is in force, which may go.

A checkpoint is a folder `step_N` that is whole when it holds a manifest, written behind its files; only then
does `latest.json` name it. All ranks share the reading and hashing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recloom.data_shards.artifacts import (
    MANIFEST,
    atomic_write_json,
    file_entry,
    file_fault,
    file_sha256,
    fsync_path,
    read_manifest,
)
from recloom.data_shards.errors import UserError
from recloom.trainer.parallel_layout import PIECE, RankLayout, named_ranks

LATEST, UNIVERSAL = "latest.json", "universal"


@dataclass(frozen=True)
class Saved:
    """A checkpoint and the ranks that wrote it.

    piece: weights that lie together in its files. manifest: the checksum of its manifest; None where it is
    not known, or where there is none, as before checkpoints had one.
    """

    folder: Path
    step: int
    world_size: int
    tensor: int
    piece: int
    manifest: str | None = None

    @property
    def tag(self) -> str:
        return f"step_{self.step}"

    @property
    def path(self) -> Path:
        return self.folder / self.tag

    @property
    def ranks(self) -> str:
        """Those that wrote it, in words."""
        return named_ranks(self.world_size, self.tensor)

    def fits(self, layout: RankLayout) -> bool:
        """Whether these ranks can load the files as they are."""
        mine = (layout.world_size, layout.tensor, layout.piece)
        return (self.world_size, self.tensor, self.piece) == mine


def in_force(folder: Path) -> Saved | None:
    """What `latest.json` names; where that is not there (any more), the newest whole checkpoint.

    Raises UserError for a `latest.json` that is damaged.
    """
    latest = folder / LATEST
    if not latest.is_file():
        return newest(folder)
    try:
        told = json.loads(latest.read_text())
        named = saved_of(folder, told, told.get("manifest"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged(latest, "it is no valid JSON of ours", newest(folder)) from None
    return named if named.path.is_dir() else newest(folder)


def saved_of(folder: Path, told: Mapping[str, Any], manifest: str | None) -> Saved:
    tensor, piece = int(told.get("tensor", 1)), int(told.get("piece", PIECE))
    return Saved(folder, int(told["step"]), int(told["world_size"]), tensor, piece, manifest)


def newest(folder: Path, below: int | None = None, verify: bool = False) -> Saved | None:
    """The newest checkpoint with a manifest, of a step below the given one. verify: its files fit it."""
    for step in sorted(steps_in(folder), reverse=True):
        if below is not None and step >= below:
            continue
        try:
            return saved_of(folder, read_manifest(folder / f"step_{step}", verify), None)
        except (UserError, KeyError, ValueError):
            continue
    return None


def steps_in(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in folder.glob("step_*")]


def files_of(path: Path) -> list[Path]:
    """The files of a checkpoint, in an order that all ranks share."""
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST)


def flushed_share(path: Path, rank: int, world_size: int) -> dict[str, Any]:
    """Flush all files, and describe this rank's share of them for the manifest."""
    # Each rank flushes what its node holds: fsync of a file is good whoever wrote it.
    for entry in (path, *path.rglob("*")):
        fsync_path(entry)
    return {str(file.relative_to(path)): file_entry(file) for file in files_of(path)[rank::world_size]}


def complete(folder: Path, step: int, layout: RankLayout, files: Mapping[str, Any], keep: int) -> None:
    """Write the manifest, then `latest.json`, then drop what is not kept (rank 0)."""
    told = {"step": step, "world_size": layout.world_size, "tensor": layout.tensor, "piece": layout.piece}
    path = folder / f"step_{step}"
    atomic_write_json(path / MANIFEST, {**told, "files": dict(files)})
    manifest = file_sha256(path / MANIFEST)
    atomic_write_json(folder / LATEST, {**told, "tag": path.name, "manifest": manifest})
    drop_old(folder, step, keep)


def drop_old(folder: Path, step: int, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints up to `step`; a later one is a torn leftover.

    What was made for other ranks goes too: it is of an earlier step.
    """
    steps = sorted(steps_in(folder), reverse=True)
    kept = [other for other in steps if other <= step][:keep]
    for other in set(steps) - set(kept):
        shutil.rmtree(folder / f"step_{other}")
    for path in folder.glob(f"{UNIVERSAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def fault_in_share(saved: Saved, rank: int, world_size: int) -> str | None:
    """What is wrong with the manifest, or with this rank's share of the files."""
    manifest = saved.path / MANIFEST
    if saved.manifest is None and not manifest.is_file():
        return None
    if not manifest.is_file() or saved.manifest not in (None, file_sha256(manifest)):
        return f"{MANIFEST} is missing or was changed"
    return share_fault(saved.path, rank, world_size)


def share_fault(path: Path, rank: int, world_size: int) -> str | None:
    """What is wrong with this rank's share of the files that a manifest lists."""
    try:
        files = read_manifest(path, sizes=False)["files"]
    except UserError:
        return f"{MANIFEST} was changed"
    for name in sorted(files)[rank::world_size]:
        fault = file_fault(path / name, files[name], verify=True)
        if fault is not None:
            return f"{name}: {fault}"
    return None


def refusal(saved: Saved, cause: str) -> UserError:
    """The sentence for a damaged checkpoint; names the newest good one, which is looked for."""
    return damaged(saved.path, cause, newest(saved.folder, saved.step, verify=True))


def damaged(path: Path, cause: str, good: Saved | None) -> UserError:
    folder = path.parent
    if good is None:
        remedy = f"no other checkpoint is good: delete {folder}, the same command starts anew"
    else:
        remedy = f"delete it, the same command continues from {good.tag}, the newest good checkpoint"
    return UserError(f"{path}: the checkpoint can't be loaded ({cause}): {remedy}.")
