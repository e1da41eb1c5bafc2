"""Interactions of any number to splits and token ids, in bounded memory, resumable.

Shapes: N rows of a part, M samples.

    prepare_history_corpus(source, folder, compiled, options)

leaves in `folder`
    rows-00000.npy     structured SPLIT_ROW: the rows of a part of the users, sorted by user and time, with
                       what `splits.leave_one_out` makes of each
    tokens-, samples-  training samples: a user's history, and the item that came next (`token_parts.py`)
    manifest.json      counts, options, fingerprints, checksums; written last
Memory is that of a part and the catalogue; time is linear in the rows. A run that was killed goes on behind
the last part it finished. The result is the same at any size of the parts, files aside.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recloom.data_shards.artifacts import (
    MANIFEST,
    atomic_write_bytes,
    atomic_write_json,
    read_manifest,
    write_manifest,
)
from recloom.data_shards.compiled import CompiledTemplate
from recloom.data_shards.errors import UserError
from recloom.data_shards.ragged import Ragged, from_column
from recloom.data_shards.splits import TRAIN, Interactions, Splits, make_split, split_labels
from recloom.data_shards.token_parts import SAMPLE, samples_path, write_token_part
from recloom.data_shards.user_runs import ROW, Parts, Source, as_npy, plan_parts, read_part, write_runs

SPLIT_ROW = np.dtype([*ROW.descr, ("topk", "i1"), ("rating_task", "i1")])
PLAN = "plan.json"
SAMPLES_AT_ONCE = 8192


@dataclass(frozen=True)
class HistoryOptions:
    """positive_rating: as in `leave_one_out`. history_items: the latest so many are shown. samples_per_user:
    the latest so many training items are asked for. rows_per_part: interactions in memory at once."""

    positive_rating: float | None
    history_items: int
    samples_per_user: int
    rows_per_part: int = 2_000_000

    def __post_init__(self) -> None:
        for name in ("history_items", "samples_per_user", "rows_per_part"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name}: {getattr(self, name)} is too small, it must be at least 1: raise it."
                )


def prepare_history_corpus(
    source: Source, folder: Path, compiled: CompiledTemplate, options: HistoryOptions
) -> dict[str, Any]:
    """Make the folder, or what of it is not made yet; returns the manifest.

    compiled: a template of {history} and {answer}, whose tables are the items in the order of their ids.
    Raises UserError for a source that does not fit, or a folder that was begun with other data or options.
    """
    source.check()
    if options.positive_rating is not None and not source.has_ratings:
        raise UserError(f"positive_rating is set, but {source.path} has no ratings: set it to null.")
    plan = plan_of(source, compiled, options)
    check_plan(folder, plan)
    if (folder / MANIFEST).is_file():
        return read_manifest(folder)
    parts = plan_parts(source, options.rows_per_part)
    runs = folder / "runs"
    num_runs = write_runs(source, parts, options.rows_per_part, runs)
    for part in range(len(parts)):
        if not samples_path(folder, part).is_file():
            write_part(folder, part, parts, read_part(runs, num_runs, part), compiled, options)
    shutil.rmtree(runs)
    return write_manifest(folder, kind="history corpus", **plan, **totals(folder, parts))


def plan_of(source: Source, compiled: CompiledTemplate, options: HistoryOptions) -> dict[str, Any]:
    """What a folder is made of."""
    found = source.path.stat()
    return {
        "source": {"bytes": found.st_size, "modified": found.st_mtime_ns, "num_users": source.num_users},
        "options": asdict(options),
        "template": compiled.fingerprint(),
    }


def check_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or compare it with the one that the folder was begun with."""
    path = folder / PLAN
    if not path.is_file():
        atomic_write_json(path, plan)
        return
    begun = json.loads(path.read_text())
    wrong = [name for name, value in plan.items() if begun.get(name) != value]
    if wrong:
        raise UserError(f"{folder}: it was begun with another {wrong[0]}: delete it, or name another folder.")


def write_part(
    folder: Path,
    part: int,
    parts: Parts,
    rows_N: np.ndarray,
    compiled: CompiledTemplate,
    options: HistoryOptions,
) -> None:
    """Splits and samples of some users; the samples file comes last and says that the part is there."""
    first_user = int(parts.first_user_P1[part])
    is_positive = options.positive_rating is None
    positive_N = np.ones(len(rows_N), bool) if is_positive else rows_N["rating"] >= options.positive_rating
    split_N = np.empty(len(rows_N), SPLIT_ROW)
    for name in ROW.names or ():
        split_N[name] = rows_N[name]
    split_N["topk"], split_N["rating_task"] = split_labels(rows_N["user"] - first_user, positive_N)
    atomic_write_bytes(rows_path(folder, part), as_npy(split_N))
    train_N = np.flatnonzero(split_N["topk"] == TRAIN)
    asked = Asked.of(rows_N["user"][train_N], rows_N["item"][train_N], options)
    ids, samples_M = render_asked(asked, compiled)
    samples_M["row"] = parts.first_row_P1[part] + train_N[asked.place_M]
    write_token_part(folder, part, ids, samples_M)


@dataclass(frozen=True)
class Asked:
    """M samples out of training rows: where their answers are among the rows, and the items before them."""

    user_M: np.ndarray
    item_M: np.ndarray
    place_M: np.ndarray
    history: Ragged

    @classmethod
    def of(cls, user_N: np.ndarray, item_N: np.ndarray, options: HistoryOptions) -> Asked:
        """The latest items of every user but the first one, each behind the items before it."""
        place_N = np.arange(len(user_N))
        is_first_N = np.diff(user_N, prepend=-1) != 0
        first_N = np.maximum.accumulate(np.where(is_first_N, place_N, 0))
        end_N = np.append(np.flatnonzero(is_first_N), len(user_N))[np.cumsum(is_first_N)]
        is_asked_N = ~is_first_N & (place_N >= end_N - options.samples_per_user)
        place_M = np.flatnonzero(is_asked_N)
        begin_M = np.maximum(first_N[place_M], place_M - options.history_items)
        history = Ragged(item_N.astype(np.int64), begin_M, place_M - begin_M)
        return cls(user_N[place_M], item_N[place_M].astype(np.int64), place_M, history)


def render_asked(asked: Asked, compiled: CompiledTemplate) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all samples end to end, and what is known of each but its row."""
    samples_M = np.zeros(len(asked.place_M), SAMPLE)
    samples_M["user"] = asked.user_M
    ids = [np.empty(0, np.int32)]
    for first in range(0, len(samples_M), SAMPLES_AT_ONCE):
        chunk = slice(first, first + SAMPLES_AT_ONCE)
        index = np.arange(first, min(first + SAMPLES_AT_ONCE, len(samples_M)))
        batch = compiled.render(
            {"history": asked.history.take(index), "answer": from_column(asked.item_M[chunk])}
        )
        if batch.has_slots:
            raise UserError("a history corpus has no places for vectors: take slots out of the tables.")
        samples_M["length"][chunk], samples_M["num_prompt"][chunk] = batch.lengths_N, batch.num_prompt_N
        ids.append(batch.ids_by_sample.flat())
    return np.concatenate(ids), samples_M


def totals(folder: Path, parts: Parts) -> dict[str, int]:
    """Counts of a folder all of whose parts are there."""
    counts = np.zeros(3, np.int64)
    for part in range(len(parts)):
        samples_M = np.load(samples_path(folder, part))
        lengths = samples_M["length"].sum(dtype=np.int64), samples_M["num_prompt"].sum(dtype=np.int64)
        counts += [len(samples_M), lengths[0], lengths[0] - lengths[1]]
    num_samples, num_tokens, num_answer_tokens = counts.tolist()
    return {
        "num_parts": len(parts),
        "num_rows": int(parts.first_row_P1[-1]),
        "num_samples": num_samples,
        "num_tokens": num_tokens,
        "num_answer_tokens": num_answer_tokens,
    }


def rows_path(folder: Path, part: int) -> Path:
    return folder / f"rows-{part:05d}.npy"


def read_splits(folder: Path) -> Iterator[Splits]:
    """The splits of a complete folder, a part of the users at a time: together those of `leave_one_out`."""
    first = 0
    for part in range(read_manifest(folder)["num_parts"]):
        rows_N = np.load(rows_path(folder, part))
        order_N = first + np.arange(len(rows_N))
        rows = Interactions(rows_N["user"], rows_N["item"], rows_N["rating"], order_N)
        yield Splits(make_split(rows, rows_N["topk"]), make_split(rows, rows_N["rating_task"]))
        first += len(rows_N)
