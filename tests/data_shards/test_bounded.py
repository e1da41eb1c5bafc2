"""The bounded path gives what the path in memory gives, at any size of its parts, and survives a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recloom.data_shards.artifacts import MANIFEST, file_sha256, read_manifest
from recloom.data_shards.bounded import HistoryOptions, prepare_history_corpus, read_splits
from recloom.data_shards.compiled import CompiledTemplate
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Entity, Sample
from recloom.data_shards.splits import Splits, leave_one_out
from recloom.data_shards.stream import PackedStream, build_row
from recloom.data_shards.tables import Tables
from recloom.data_shards.textualize import sequential_task
from recloom.data_shards.textualize.behaviour import Person, TaskOptions
from recloom.data_shards.textualize.sequential_task import SequentialContext, sequential_sample
from recloom.data_shards.textualize.template_sets import load_set
from recloom.data_shards.token_parts import TokenParts
from recloom.data_shards.user_runs import Source

NUM_USERS, NUM_ITEMS, NUM_ROWS = 60, 40, 900
TITLES = [f"Title {item} (19{item})" for item in range(NUM_ITEMS - 1)] + ["/ begins with a slash"]
TEMPLATE = "sequential-06"


def make_rows(seed: int) -> pa.Table:
    """Interactions in the order of a log: users mixed, some of few rows, one of none, times tied."""
    rng = np.random.default_rng(seed)
    user_N = (rng.beta(0.4, 1.0, NUM_ROWS) * (NUM_USERS - 2)).astype(np.int32)
    user_N[user_N == 5] = NUM_USERS - 1
    return pa.table(
        {
            "user": user_N,
            "item": rng.integers(0, NUM_ITEMS, NUM_ROWS).astype(np.int32),
            "rating": rng.integers(1, 6, NUM_ROWS).astype(np.float32),
            "timestamp": rng.integers(0, 200, NUM_ROWS).astype(np.int64),
        }
    )


def write_source(folder: Path, rows: pa.Table, rows_per_group: int = 100) -> Source:
    path = folder / "interactions.parquet"
    pq.write_table(rows, path, row_group_size=rows_per_group)
    return Source(path, NUM_USERS, NUM_ITEMS)


def tables_of(rows: pa.Table) -> Tables:
    """The same interactions as the tables that the path in memory takes."""
    order_N = np.lexsort((rows["timestamp"].to_numpy(), rows["user"].to_numpy()))
    items = pa.table({"item": pa.array(range(NUM_ITEMS), pa.int32()), "title": TITLES})
    users = pa.table({"user": pa.array(range(NUM_USERS), pa.int32())})
    return Tables("log", rows.take(pa.array(order_N)), items, users)


@pytest.fixture(scope="module")
def renderer(smollm2: Path) -> Renderer:
    from transformers import AutoTokenizer

    return Renderer(AutoTokenizer.from_pretrained(smollm2))


@pytest.fixture(scope="module")
def compiled(renderer: Renderer) -> CompiledTemplate:
    return compile_titles(renderer, TITLES)


def named_template() -> Any:
    found = load_set("recsysllm", sequential_task.FAMILY)
    return next(named for named in found if named.id == TEMPLATE)


def compile_titles(renderer: Renderer, titles: list[str]) -> CompiledTemplate:
    table = [(Entity(title, "item", item),) for item, title in enumerate(titles)]
    constants = {"noun": "movie", "verb": "watched"}
    return CompiledTemplate(
        renderer, named_template().template, constants, {"history": table, "answer": table}
    )


def assert_same_splits(folder: Path, want: Splits) -> None:
    parts = list(read_splits(folder))
    for task in ("topk", "rating"):
        for label in ("train", "valid", "test"):
            for column, values in vars(getattr(getattr(want, task), label)).items():
                found = np.concatenate([getattr(getattr(getattr(p, task), label), column) for p in parts])
                assert np.array_equal(found, values), (task, label, column)


def samples_in_memory(splits: Splits, options: HistoryOptions) -> list[tuple[int, int, Sample]]:
    """(user, row, sample), made one by one."""
    train, texts = splits.topk.train, TaskOptions(TITLES, "movie", verb="watched")
    found = []
    for user in range(NUM_USERS):
        place_T = np.flatnonzero(train.user_N == user)
        for t in range(max(1, len(place_T) - options.samples_per_user), len(place_T)):
            history = train.item_N[place_T[:t]][-options.history_items :].tolist()
            context = SequentialContext(Person(user, history=history), int(train.item_N[place_T[t]]))
            row = int(train.order_N[place_T[t]])
            found.append((user, row, sequential_sample(named_template(), context, texts)))
    return found


@pytest.mark.parametrize("rows_per_part", [1, 70, 333, 10_000])
@pytest.mark.parametrize("positive_rating", [None, 4.0])
def test_the_same_splits_and_samples_as_in_memory(
    tmp_path: Path,
    renderer: Renderer,
    compiled: CompiledTemplate,
    rows_per_part: int,
    positive_rating: float | None,
) -> None:
    rows = make_rows(3)
    options = HistoryOptions(
        positive_rating, history_items=4, samples_per_user=3, rows_per_part=rows_per_part
    )
    manifest = prepare_history_corpus(write_source(tmp_path, rows), tmp_path / "out", compiled, options)
    splits = leave_one_out(tables_of(rows), positive_rating)
    assert_same_splits(tmp_path / "out", splits)
    want, got = samples_in_memory(splits, options), TokenParts(tmp_path / "out")
    assert len(got) == len(want) == manifest["num_samples"] > 50
    assert manifest["num_rows"] == NUM_ROWS and manifest["num_tokens"] == got.lengths_N.sum()
    for n, (user, row, sample) in enumerate(want):
        rendered = renderer.render(sample)
        assert got.ids(n).tolist() == rendered.ids_T.tolist()
        assert (got.samples_N["user"][n], got.samples_N["row"][n]) == (user, row)
        assert got.num_prompt_N[n] == rendered.num_prompt


def test_the_stream_reads_it(tmp_path: Path, compiled: CompiledTemplate) -> None:
    source = write_source(tmp_path, make_rows(0))
    prepare_history_corpus(source, tmp_path / "out", compiled, HistoryOptions(None, 5, 2, 300))
    parts = TokenParts(tmp_path / "out")
    seen = []
    for step in PackedStream(parts, 256, 4, 32, seed=0, rank=0, world_size=1):
        seen += step.sample_ids
        for row in step.rows:
            assert row.ids_T.equal(build_row(parts, row.sample_indices).ids_T)
    assert sorted(seen) == list(range(len(parts)))


SCRIPT = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from recloom.data_shards.renderer import Renderer
sys.path.insert(0, sys.argv[1])
import test_bounded as t
folder = Path(sys.argv[2])
compiled = t.compile_titles(Renderer(AutoTokenizer.from_pretrained(sys.argv[3])), t.TITLES)
source = t.Source(folder / "interactions.parquet", t.NUM_USERS, t.NUM_ITEMS)
t.prepare_history_corpus(source, folder / "out", compiled, t.HistoryOptions(4.0, 4, 3, 1))
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, smollm2: Path, compiled: CompiledTemplate) -> None:
    source, options = write_source(tmp_path, make_rows(1), 50), HistoryOptions(4.0, 4, 3, 1)
    out = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path), str(smollm2)]
    process = subprocess.Popen(command)
    while len(list(out.glob("samples-*.npy"))) < 3 and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (out / MANIFEST).exists()
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*-*.npy") if done(path)}
    assert len(finished) > 3
    prepare_history_corpus(source, out, compiled, options)
    assert all(path.stat().st_mtime_ns == at for path, at in finished.items() if path.parent == out)
    prepare_history_corpus(source, tmp_path / "whole", compiled, options)
    assert checksums(out) == checksums(tmp_path / "whole")


def done(path: Path) -> bool:
    """Files of a part whose samples are there."""
    number = path.name.split("-")[1].split(".")[0]
    return path.with_name(f"samples-{number}.npy").exists()


def checksums(folder: Path) -> dict[str, str]:
    read_manifest(folder, verify=True)
    return {path.name: file_sha256(path) for path in folder.glob("*.npy")}


def test_finished_runs_of_the_first_pass_are_kept(
    tmp_path: Path, compiled: CompiledTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recloom.data_shards import user_runs

    source, options = write_source(tmp_path, make_rows(1)), HistoryOptions(None, 4, 3, 100)
    write_run, numbers = user_runs.write_run, []

    def stopping(*arguments: Any) -> None:
        numbers.append(arguments[-1])
        if len(numbers) == 4:
            raise KeyboardInterrupt
        write_run(*arguments)

    monkeypatch.setattr(user_runs, "write_run", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare_history_corpus(source, tmp_path / "out", compiled, options)
    prepare_history_corpus(source, tmp_path / "out", compiled, options)
    assert numbers == [0, 1, 2, 3, *range(3, 9)]
    assert not (tmp_path / "out" / "runs").exists()


def test_a_folder_of_other_data_or_options_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    source, compiled = write_source(tmp_path, make_rows(1)), compile_titles(renderer, TITLES)
    out = tmp_path / "out"
    first = prepare_history_corpus(source, out, compiled, HistoryOptions(None, 4, 3))
    assert prepare_history_corpus(source, out, compiled, HistoryOptions(None, 4, 3)) == first
    with pytest.raises(UserError, match="another options"):
        prepare_history_corpus(source, out, compiled, HistoryOptions(None, 5, 3))
    with pytest.raises(UserError, match="another template"):
        prepare_history_corpus(
            source, out, compile_titles(renderer, ["Other", *TITLES[1:]]), HistoryOptions(None, 4, 3)
        )
    write_source(tmp_path, make_rows(2))
    with pytest.raises(UserError, match="another source"):
        prepare_history_corpus(source, out, compiled, HistoryOptions(None, 4, 3))


def with_column(name: str, values: Any) -> pa.Table:
    rows = make_rows(0)
    return rows.set_column(rows.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (make_rows(0).drop_columns(["timestamp"]), "no column timestamp"),
        (with_column("item", pa.array(np.zeros(NUM_ROWS, np.int64))), "item is int64, it must be int32"),
        (with_column("item", pa.array(np.full(NUM_ROWS, NUM_ITEMS, np.int32))), "item must lie in 0..39"),
        (with_column("user", pa.array(np.full(NUM_ROWS, -1, np.int32))), "user must lie in 0..59"),
        (with_column("rating", pa.nulls(NUM_ROWS, pa.float32())), "rating holds nulls"),
        (make_rows(0).drop_columns(["rating"]), "has no ratings"),
        (make_rows(0)[:0], "no rows"),
    ],
)
def test_sources_that_do_not_fit(
    tmp_path: Path, compiled: CompiledTemplate, rows: pa.Table, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare_history_corpus(
            write_source(tmp_path, rows), tmp_path / "out", compiled, HistoryOptions(4.0, 4, 3)
        )


def test_without_ratings(tmp_path: Path, compiled: CompiledTemplate) -> None:
    rows = make_rows(0).drop_columns(["rating"])
    prepare_history_corpus(
        write_source(tmp_path, rows), tmp_path / "out", compiled, HistoryOptions(None, 4, 3)
    )
    found = np.concatenate([splits.topk.train.rating_N for splits in read_splits(tmp_path / "out")])
    assert len(found) and np.isnan(found).all()
