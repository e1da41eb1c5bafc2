"""Named arrays in one file to be mapped into memory: a JSON header with a checksum, then aligned arrays."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"RECLOOM-TRIE-1\n"
ALIGN = 64
CHUNK = 1 << 24


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write to a file beside `path`, force it to disk, then rename: a file under its name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    places: list[dict[str, Any]] = []
    end = 0
    for name, array in arrays.items():
        begin = aligned(end)
        end = begin + array.nbytes
        places.append({"name": name, "dtype": array.dtype.str, "shape": list(array.shape), "begin": begin})
    header = {"meta": dict(meta), "arrays": places, "bytes": end, "crc32": payload_crc(arrays)}
    text = json.dumps(header).encode()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    with open(unfinished, "wb") as file:
        file.write(MAGIC + number(len(text)) + number(zlib.crc32(text)) + text)
        base = aligned(file.tell())
        for place, array in zip(places, arrays.values(), strict=True):
            file.seek(base + place["begin"])
            file.write(array.tobytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def read_arrays(
    path: Path, names: Sequence[str], verify: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays mapped read-only, meta); ValueError for a file cut short, changed or of another kind."""
    again = "build and save the trie again"
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path} is no saved trie of this version: {again}.")
        length, crc = (int.from_bytes(file.read(8), "little") for _ in range(2))
        text = file.read(min(length, CHUNK))
        base = aligned(file.tell())
    if zlib.crc32(text) != crc:
        raise ValueError(f"{path} has a damaged header: {again}.")
    header = json.loads(text)
    places = {place["name"]: place for place in header["arrays"]}
    size = header["bytes"]
    if path.stat().st_size != base + size:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, not {base + size}: {again}.")
    payload = np.memmap(path, np.uint8, "r", base, (size,))
    arrays = {name: view(payload, places[name]) for name in names}
    if verify and payload_crc(arrays) != header["crc32"]:
        raise ValueError(f"{path} differs from what was saved (checksum): {again}.")
    return arrays, header["meta"]


def view(payload: np.ndarray, place: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(place["dtype"])
    nbytes = int(np.prod(place["shape"])) * dtype.itemsize
    return payload[place["begin"] : place["begin"] + nbytes].view(dtype).reshape(place["shape"])


def payload_crc(arrays: Mapping[str, np.ndarray]) -> int:
    crc = 0
    for array in arrays.values():
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, len(data), CHUNK):
            crc = zlib.crc32(data[start : start + CHUNK].data, crc)
    return crc


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def aligned(position: int) -> int:
    return -(-position // ALIGN) * ALIGN
