"""Files that are either whole or absent: atomic writes, checksums, manifests written last.

A folder is complete when it holds `manifest.json`, which names every other file with its size and
SHA-256. Everything is flushed to the disk before the manifest's name appears.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from recloom.data_shards.errors import UserError

MANIFEST = "manifest.json"


def cache_dir() -> Path:
    """The folder of downloads and converted models: `RECLOOM_CACHE`, else `~/.cache/recloom`."""
    return Path(os.environ.get("RECLOOM_CACHE") or Path.home() / ".cache" / "recloom")


def fsync_path(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `path` so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    fsync_path(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path, value: Any) -> None:
    atomic_write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, **fields: Any) -> dict[str, Any]:
    """Flush and hash every file below `folder`, then write `manifest.json`; returns its content."""
    (folder / MANIFEST).unlink(missing_ok=True)
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".tmp")):
        fsync_path(path)
        files[str(path.relative_to(folder))] = file_entry(path)
    manifest = {**fields, "files": files}
    atomic_write_json(folder / MANIFEST, manifest)
    return manifest


def file_entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def read_manifest(folder: Path, verify: bool = False, sizes: bool = True) -> dict[str, Any]:
    """The manifest of a complete folder.

    sizes: compare the files' sizes. verify: hash every file again. Raises UserError that names the missing
    or damaged file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no {MANIFEST}, the folder is incomplete: make it again.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path}: the manifest is no valid JSON: delete the folder, make it again.") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise UserError(f"{path}: the manifest lists no files: delete the folder, make it again.")
    for name, want in files.items() if sizes or verify else ():
        check_file(folder / name, want, verify)
    return manifest


def check_file(path: Path, want: dict[str, Any], verify: bool) -> None:
    """Compare one file with its manifest entry. Raises UserError."""
    fault = file_fault(path, want, verify)
    if fault is not None:
        raise UserError(f"{path}: {fault}: delete the folder and make it again.")


def file_fault(path: Path, want: dict[str, Any], verify: bool) -> str | None:
    """How a file differs from its manifest entry. verify: hash it."""
    if not path.is_file():
        return "the file is missing, the manifest lists it"
    size = path.stat().st_size
    if size != want["bytes"]:
        return f"{size} bytes, the manifest says {want['bytes']}"
    if verify and file_sha256(path) != want["sha256"]:
        return "the checksum differs from the manifest's"
    return None
