"""The folder of one bulk pass: which requests are answered, which are left, and for which model.

A chunk appears by one rename, so after a crash the folder holds whole chunks only. Answers belong
to one model, one request file and one number format (`identity`); chunks of another are dropped.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from os.path import commonprefix
from pathlib import Path
from typing import Any

from recloom.data_shards.artifacts import (
    MANIFEST,
    atomic_write_json,
    atomic_write_text,
    file_sha256,
    read_manifest,
    write_manifest,
)
from recloom.data_shards.errors import UserError
from recloom.trainer.requests import (
    CHUNKS,
    REQUESTS,
    BulkSettings,
    Request,
    read_answers,
    read_chunk,
    read_requests,
    requests_text,
)

PASS = "pass.json"
# NFS keeps what was removed while open as .nfs*.
OWN_FILES = (PASS, REQUESTS, MANIFEST, CHUNKS, ".*.tmp", ".nfs*")
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer*", "*.safetensors", "*.bin")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BulkStore:
    """One pass's folder, model and settings; `pass.json` carries them to the worker."""

    out: Path
    model: Path
    settings: BulkSettings
    identity: dict[str, Any]

    @classmethod
    def describe(
        cls, out: Path, model: Path, settings: BulkSettings, requests: Sequence[Request]
    ) -> BulkStore:
        """The store of these inputs; nothing is written.

        Raises UserError when the folder holds files that are not a bulk pass's.
        """
        check_own(out)
        identity = {
            "model_digest": model_digest(model),
            "requests_digest": hashlib.sha256(requests_text(requests).encode()).hexdigest(),
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_len,
        }
        if in_one_pass(settings, requests):  # rounds otherwise
            identity["scoring"] = settings.scoring
        return cls(out, model, settings, identity)

    def settle(self, requests: Sequence[Request]) -> None:
        """Make or reopen the folder; answers to other inputs are dropped, with a warning."""
        out, identity = self.out, self.identity
        if not self.is_saved():
            self.drop()
        if not (out / REQUESTS).is_file() or file_sha256(out / REQUESTS) != identity["requests_digest"]:
            atomic_write_text(out / REQUESTS, requests_text(requests))
        for leftover in out.glob(".*.tmp"):
            leftover.unlink()
        model, settings = str(self.model.resolve()), self.settings.model_dump()
        state = {"identity": identity, "model": model, "settings": settings}
        if self.saved() != state:
            atomic_write_json(out / PASS, state)

    def is_saved(self) -> bool:
        """Whether the folder's answers are to these inputs."""
        return bool(self.saved().get("identity") == self.identity)

    @classmethod
    def reopen(cls, out: Path) -> BulkStore:
        """The store as a worker sees it."""
        saved = json.loads((out / PASS).read_text())
        return cls(out, Path(saved["model"]), BulkSettings(**saved["settings"]), saved["identity"])

    def saved(self) -> dict[str, Any]:
        try:
            saved: dict[str, Any] = json.loads((self.out / PASS).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return saved

    def drop(self) -> None:
        """Remove the answers to other inputs. `pass.json` is rewritten after this, never before."""
        stale = sorted(self.out.glob(CHUNKS))
        if stale:
            log.warning(
                "%s: model, requests or number format changed: %d old chunks dropped", self.out, len(stale)
            )
        for path in (self.out / MANIFEST, *stale):
            path.unlink(missing_ok=True)

    def requests(self) -> list[Request]:
        """Every request once, in file order."""
        return list({request.key: request for request in read_requests(self.out / REQUESTS)}.values())

    def committed(self) -> set[str]:
        """Keys that whole chunks answer; a damaged chunk is removed, so that it is redone."""
        keys: set[str] = set()
        for path in sorted(self.out.glob(CHUNKS)):
            try:
                keys.update(answer.key for answer in read_chunk(path))
            except UserError:
                log.warning("%s: the chunk is damaged: it is removed and answered again", path)
                path.unlink()
        return keys

    def todo(self) -> Iterator[tuple[Path, list[Request]]]:
        """The chunks still to answer, each with the file it goes to, in prefix order.

        All requests are planned and what is answered is left out, so that the chunks are those of a pass
        that was never interrupted.
        """
        done = self.committed()
        planned = plan_chunks(self.requests(), self.settings.chunk_size)
        left = ([request for request in chunk if request.key not in done] for chunk in planned)
        paths = (self.out / f"chunk-{number:05d}.jsonl" for number in itertools.count())
        free = (path for path in paths if not path.exists())
        return zip(free, filter(None, left), strict=False)

    def finished(self) -> bool:
        """Whether every request is answered and the manifest vouches for it."""
        try:
            read_answers(self.out)
        except UserError:
            (self.out / MANIFEST).unlink(missing_ok=True)
            return False
        return True

    def finish(self) -> None:
        outcomes = Counter(a.finish_reason for path in self.out.glob(CHUNKS) for a in read_chunk(path))
        fields = {"identity": self.identity, "settings": self.settings.model_dump(), "outcomes": outcomes}
        write_manifest(self.out, kind="bulk", count=outcomes.total(), **fields)


def in_one_pass(settings: BulkSettings, requests: Sequence[Request]) -> bool:
    """Whether vLLM is left out: next tokens are all that is asked for, behind prompts without soft rows."""
    return settings.scoring == "one_pass" and all(r.score_ids and r.soft is None for r in requests)


def plan_chunks(requests: Sequence[Request], chunk_size: int) -> Iterator[list[Request]]:
    """Requests of one kind a chunk, neighbours sharing the longest prefix so that its cache is used.

    A kind is the number of score ids: vLLM returns wrong numbers for a batch that mixes generation
    with scoring, and pads shorter lists of score ids with token 0.
    """
    ordered = sorted(requests, key=lambda request: (len(request.score_ids), *prefix(request), request.key))
    for _, group in itertools.groupby(ordered, key=lambda request: len(request.score_ids)):
        yield from cut(list(group), chunk_size)


def cut(ordered: list[Request], size: int) -> Iterator[list[Request]]:
    """Chunks of half of `size` to `size` requests, cut where the next one has to compute least anew.

    The cache starts empty with every chunk: what the requests on both sides of a cut share is computed twice.
    """
    start = 0
    while start < len(ordered):
        end = best_end(ordered, start, size)
        yield ordered[start:end]
        start = end


def best_end(ordered: list[Request], start: int, size: int) -> int:
    """The last of the ends with the fewest tokens computed anew for a request of the chunk.

    If all of them part a user's scored candidates, the end of these, up to twice `size`: a score costs
    little but its prompt.
    """
    if len(ordered) - start <= size:
        return len(ordered)
    ends = range(start + size, start + (size + 1) // 2 - 1, -1)
    best = min(ends, key=lambda end: num_shared(ordered[end - 1], ordered[end]) / (end - start))
    if not parts_candidates(ordered, best):
        return best
    longer = range(start + size + 1, min(start + 2 * size, len(ordered)) + 1)
    return next((end for end in longer if not parts_candidates(ordered, end)), best)


def parts_candidates(ordered: list[Request], end: int) -> bool:
    """Whether both sides score what follows a beginning of at least half of their prompts."""
    if end == len(ordered) or not ordered[end].score_ids:
        return False
    sides = ordered[end - 1], ordered[end]
    return 2 * num_shared(*sides) >= max(len(side.prompt_ids) for side in sides) > 0


def num_shared(one: Request, other: Request) -> int:
    """Tokens that both prompts begin with."""
    (file, ids), (other_file, other_ids) = prefix(one), prefix(other)
    return len(commonprefix([ids, other_ids])) if file == other_file else 0


def prefix(request: Request) -> tuple[str, tuple[int, ...]]:
    """What the cache knows a prompt by: the file of its soft rows, its ids, soft rows as negative numbers."""
    if request.soft is None:
        return "", request.prompt_ids
    rows = dict(zip(request.soft.positions, request.soft.rows, strict=False))  # a faulty one is refused later
    places = enumerate(request.prompt_ids)
    return request.soft.file, tuple(-1 - rows[n] if n in rows else token for n, token in places)


def check_own(out: Path) -> None:
    """Refuse a folder in use for something else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"out = '{out}': this is a file: name a folder.")
    names = sorted(os.listdir(out)) if out.is_dir() else []  # once: other machines may add chunks meanwhile
    foreign = [name for name in names if not any(fnmatch(name, own) for own in OWN_FILES)]
    if foreign:
        raise UserError(f"out = '{out}': the folder holds '{foreign[0]}', no bulk pass's file: name another.")


def model_digest(model: Path) -> str:
    """A hash of everything in a model folder that answers depend on, weights in full.

    A folder with our manifest is taken at its word: the manifest has the files' hashes.
    """
    if (model / MANIFEST).is_file() and "files" in json.loads((model / MANIFEST).read_text()):
        read_manifest(model)
        return file_sha256(model / MANIFEST)
    paths = sorted({path for pattern in MODEL_FILES for path in model.glob(pattern)})
    with ThreadPoolExecutor(4) as pool:
        hashes = zip((path.name for path in paths), pool.map(file_sha256, paths), strict=True)
        return hashlib.sha256(json.dumps(list(hashes)).encode()).hexdigest()
