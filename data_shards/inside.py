"""Names that come from a file must not lead out of the folder that they are meant in."""

from __future__ import annotations

from pathlib import Path

from recloom.data_shards.errors import UserError


def inside(folder: Path, name: str, origin: Path) -> Path:
    """`folder / name`, which links and `..` included must lie in the folder.

    Raises UserError that names `origin`, the file in which the name stands.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{origin}: it names '{name}', which lies outside of {folder}: get the folder again.")
    return path
