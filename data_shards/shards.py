"""WebDataset shards of rendered samples.

Shapes: N samples, T tokens.

A folder holds
  shard-00000.tar ...  per sample `<key>.json` (text, segments, meta, spans: for people) and
                       `<key>.ids.npy` (int32 token ids)
  index.npy            int64 (N, 5): shard number, offset and size of the JSON, offset and size of the raw ids
  lengths.npy          int32 (N, 2): number of tokens, number of prompt tokens
  manifest.json        counts, tokenizer fingerprint, the caller's fields, size and SHA-256 of every file
The same samples give the same bytes. The manifest is written last: without it the folder is incomplete.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from recloom.data_shards.artifacts import MANIFEST, read_manifest, write_manifest
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Rendered, Renderer, SlotPosition
from recloom.data_shards.samples import Sample, sample_text

INDEX = "index.npy"
LENGTHS = "lengths.npy"
COUNTS = frozenset({"num_samples", "num_shards", "num_tokens", "num_answer_tokens", "samples_per_shard"})
KEY = re.compile(r"[A-Za-z0-9_-]+")
MEMBER = re.compile(KEY.pattern + r"\.(json|ids\.npy)")
REMEDY = "delete the folder and make it again."


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def write_shards(
    samples: Iterable[Sample],
    renderer: Renderer,
    folder: Path,
    samples_per_shard: int = 1000,
    answered: bool = True,
    **manifest_fields: Any,
) -> dict[str, Any]:
    """Render the samples into `folder`, in order, and return the manifest.

    Shards of an earlier attempt are replaced. answered: False for texts that are only read.
    Raises UserError for a key that repeats or is no file name.
    """
    clear_folder(folder)
    index: list[list[int]] = []
    lengths: list[tuple[int, int]] = []
    num_slots = 0
    keys: set[str] = set()
    tar: tarfile.TarFile | None = None
    try:
        for number, sample in enumerate(tqdm(samples, desc="shards", unit="sample", disable=None)):
            check_key(sample.key, keys)
            if number % samples_per_shard == 0:
                tar = next_tar(tar, folder / shard_name(number // samples_per_shard))
            assert tar is not None
            rendered = renderer.render(sample) if answered else renderer.render_text(sample)
            index.append([number // samples_per_shard, *add_sample(tar, sample, rendered)])
            lengths.append((len(rendered.ids_T), rendered.num_prompt))
            num_slots += len(rendered.slots)
    finally:
        if tar is not None:
            tar.close()
    if not lengths:
        raise UserError(f"{folder}: there is no sample to write: check how the samples are made.")
    np.save(folder / INDEX, np.asarray(index, dtype=np.int64))
    lengths_N2 = np.asarray(lengths, dtype=np.int32)
    np.save(folder / LENGTHS, lengths_N2)
    fields = {**manifest_fields, "tokenizer": renderer.fingerprint(), "samples_per_shard": samples_per_shard}
    fields["num_slots"] = num_slots
    return write_manifest(folder, **fields, **counts(lengths_N2, samples_per_shard))


def counts(lengths_N2: np.ndarray, samples_per_shard: int) -> dict[str, int]:
    """What the manifest says of the samples, from their lengths."""
    num_tokens, num_prompt_tokens = (int(total) for total in lengths_N2.sum(axis=0, dtype=np.int64))
    return {
        "num_samples": len(lengths_N2),
        "num_shards": -(-len(lengths_N2) // samples_per_shard),
        "num_tokens": num_tokens,
        "num_answer_tokens": num_tokens - num_prompt_tokens,
    }


def clear_folder(folder: Path) -> None:
    """Remove what an earlier attempt wrote, the manifest first."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / MANIFEST, folder / INDEX, folder / LENGTHS, *folder.glob("shard-*.tar")):
        path.unlink(missing_ok=True)


def check_key(key: str, keys: set[str]) -> None:
    if not KEY.fullmatch(key):
        raise UserError(f"sample key {key!r}: only letters, digits, _ and - are allowed: rename it.")
    if key in keys:
        raise UserError(f"sample key {key!r}: it occurs twice: remove duplicate samples first.")
    keys.add(key)


def next_tar(tar: tarfile.TarFile | None, path: Path) -> tarfile.TarFile:
    if tar is not None:
        tar.close()
    return tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)


def add_sample(tar: tarfile.TarFile, sample: Sample, rendered: Rendered) -> list[int]:
    """Append a sample's two files; returns offset and size of the JSON, then of the raw ids."""
    record = {
        **sample.to_json(),
        "text": sample_text(sample.prompt + sample.answer),
        "num_prompt": rendered.num_prompt,
        "entity_spans": rendered.entity_spans,
        "slots": rendered.slots,
    }
    text = json.dumps(record, sort_keys=True, ensure_ascii=False).encode()
    buffer = io.BytesIO()
    np.save(buffer, rendered.ids_T)
    json_offset = add_file(tar, f"{sample.key}.json", text)
    npy_offset = add_file(tar, f"{sample.key}.ids.npy", buffer.getvalue())
    num_bytes = rendered.ids_T.nbytes
    header = buffer.tell() - num_bytes
    return [json_offset, len(text), npy_offset + header, num_bytes]


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file whose header depends on name and size alone; returns where its data begins."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return int(tar.offset) - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


class ShardReader:
    """Random access to a complete folder of shards, without unpacking.

    Raises UserError, naming the file, for a folder without manifest, a missing file or a wrong size.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._index_N5 = np.load(folder / INDEX, mmap_mode="r")
        lengths_N2 = np.load(folder / LENGTHS)
        self.lengths_N: np.ndarray = lengths_N2[:, 0]
        self.num_prompt_N: np.ndarray = lengths_N2[:, 1]
        self.has_slots = self.manifest.get("num_slots", 0) > 0
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.lengths_N)

    def ids(self, index: int) -> np.ndarray:
        """Token ids of a sample, int32 (T,), read-only."""
        shard, _, _, offset, size = self._index_N5[index].tolist()
        return np.frombuffer(self._read(shard, offset, size), dtype=np.int32)

    def record(self, index: int) -> dict[str, Any]:
        """The readable JSON of a sample."""
        shard, offset, size, _, _ = self._index_N5[index].tolist()
        record: dict[str, Any] = json.loads(self._read(shard, offset, size))
        return record

    def slots(self, index: int) -> list[SlotPosition]:
        """The slots of a sample."""
        return [(position, kind, id) for position, kind, id in self.record(index)["slots"]]

    def sample(self, index: int) -> Sample:
        return Sample.from_json(self.record(index))

    def close(self) -> None:
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        if shard not in self._files:
            self._files[shard] = os.open(self.folder / shard_name(shard), os.O_RDONLY)
        data = os.pread(self._files[shard], size, offset)
        if len(data) != size:
            raise UserError(f"{self.folder / shard_name(shard)}: the file ends too early: {REMEDY}")
        return data


def verify_shards(folder: Path) -> dict[str, Any]:
    """Check every byte against the manifest, and the manifest against the index; returns the manifest.

    Raises UserError naming the damaged, missing or contradicting file.
    """
    manifest = read_manifest(folder, verify=True)
    path = folder / MANIFEST
    missing = sorted(COUNTS - set(manifest))
    if missing:
        raise UserError(f"{path}: the field {missing[0]} is missing: {REMEDY}")
    files = {INDEX, LENGTHS, *(shard_name(number) for number in range(manifest["num_shards"]))}
    odd = sorted(files ^ set(manifest["files"]))
    if odd:
        raise UserError(f"{path}: the listed files and num_shards disagree on {odd[0]}: {REMEDY}")
    found = counts(np.load(folder / LENGTHS), manifest["samples_per_shard"])
    for field, value in found.items():
        if manifest[field] != value:
            raise UserError(f"{path}: {field} is {manifest[field]}, {LENGTHS} gives {value}: {REMEDY}")
    for number in range(manifest["num_shards"]):
        check_tar(folder, number)
    return manifest


def check_tar(folder: Path, number: int) -> None:
    """The tar is read as any tool reads it, and its members must lie where the index says."""
    path = folder / shard_name(number)
    index_N5 = np.load(folder / INDEX)
    want = index_N5[index_N5[:, 0] == number]
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    odd = [member.name for member in members if not (member.isreg() and MEMBER.fullmatch(member.name))]
    if odd:
        raise UserError(f"{path}: the member {odd[0]!r} is no sample's file: {REMEDY}")
    found = [(member.offset_data, member.size) for member in members]
    jsons = [(offset, size) for offset, size in want[:, 1:3].tolist()]
    ends = [offset + size for offset, size in want[:, 3:5].tolist()]
    if found[0::2] != jsons or [offset + size for offset, size in found[1::2]] != ends:
        raise UserError(f"{path}: its members lie elsewhere than {INDEX} says: {REMEDY}")
