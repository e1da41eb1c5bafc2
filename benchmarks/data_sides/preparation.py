"""One process of the preparation benchmark: `make` a log of synthetic interactions, or `prepare` it.

    python benchmarks/data_sides/preparation.py make|prepare WORK     (JSON: rows, items, folder, model, out)

prints what it took as JSON. Alone in its process, so that its memory is its own.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_USER = 100
ROWS_PER_GROUP = 1_000_000
WORDS = (
    "Return",
    "Night",
    "Last",
    "Blue",
    "River",
    "House",
    "of the",
    "Stone",
    "Winter",
    "King",
    "Lost",
    "Dream",
)


def titles(count: int) -> list[str]:
    rng = np.random.default_rng(1)
    words_IW = rng.integers(0, len(WORDS), (count, 4))
    return [
        " ".join(WORDS[k] for k in row) + f" {item} ({1950 + item % 70})" for item, row in enumerate(words_IW)
    ]


def make(work: dict[str, Any]) -> dict[str, Any]:
    """A log in the order of time: users drawn by activity, items by popularity, ratings 1 to 5."""
    rng = np.random.default_rng(0)
    schema = pa.schema(
        [("user", pa.int32()), ("item", pa.int32()), ("rating", pa.float32()), ("timestamp", pa.int64())]
    )
    num_users, left = work["rows"] // ROWS_PER_USER, work["rows"]
    with pq.ParquetWriter(Path(work["folder"]) / "interactions.parquet", schema) as writer:
        while left:
            count = min(left, ROWS_PER_GROUP)
            columns = [
                (rng.random(count) ** 1.3 * num_users).astype(np.int32),
                (rng.random(count) ** 2 * work["items"]).astype(np.int32),
                rng.integers(1, 6, count).astype(np.float32),
                np.arange(work["rows"] - left, work["rows"] - left + count),
            ]
            writer.write_table(pa.table(columns, schema=schema))
            left -= count
    return {}


def prepare(work: dict[str, Any]) -> dict[str, Any]:
    """Tables to leave-one-out to samples to token ids; the seconds of compiling the catalogue apart."""
    from transformers import AutoTokenizer

    from recloom.data_shards.bounded import HistoryOptions, prepare_history_corpus
    from recloom.data_shards.compiled import CompiledTemplate
    from recloom.data_shards.ragged import from_rows
    from recloom.data_shards.renderer import Renderer
    from recloom.data_shards.samples import Entity
    from recloom.data_shards.textualize import sequential_task
    from recloom.data_shards.textualize.template_sets import load_set
    from recloom.data_shards.user_runs import Source

    folder = Path(work["folder"])
    table = [(Entity(title, "item", item),) for item, title in enumerate(titles(work["items"]))]
    named = next(one for one in load_set("recsysllm", sequential_task.FAMILY) if one.id == "sequential-06")
    renderer = Renderer(AutoTokenizer.from_pretrained(work["model"]))
    compiled = CompiledTemplate(renderer, named.template, {}, {"history": table, "answer": table})
    source = Source(folder / "interactions.parquet", work["rows"] // ROWS_PER_USER, work["items"])
    options = HistoryOptions(4.0, history_items=20, samples_per_user=4)
    begin = time.perf_counter()
    compiled.render({"history": from_rows([[0, 1]]), "answer": from_rows([[0]])})
    compile_ms = 1e3 * (time.perf_counter() - begin)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    manifest = prepare_history_corpus(source, folder / work["out"], compiled, options)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    counts = {name: manifest[name] for name in ("num_parts", "num_samples", "num_tokens")}
    return {
        **counts,
        "compile_ms": compile_ms,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_gib": peak,
    }


if __name__ == "__main__":
    print(json.dumps({"make": make, "prepare": prepare}[sys.argv[1]](json.loads(sys.argv[2]))))
