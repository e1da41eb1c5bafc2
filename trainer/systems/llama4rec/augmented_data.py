"""What the LLM made, as training data (Llama4Rec, section 4.2)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.stages import Run
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig


def augmented_tasks(config: Llama4RecConfig) -> list[str]:
    """The tasks that the LLM makes data for; rating only where attributes are named."""
    return [
        task for task in config.backbones.tasks if task != "rating" or config.augment.attributes is not None
    ]


def read_records(run: Run[Llama4RecConfig], task: str) -> list[dict[str, Any]]:
    """The audit records of one task; an answer without use has `chosen` or `attributes` null."""
    path = run.path(f"augment/{task}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def augmented_topk(run: Run[Llama4RecConfig], task: str, plain: TopKData) -> TopKData:
    """Training data with the LLM's records: pairs for BPR (eq. 3) or items inserted into sequences.

    Histories and masks of the evaluation stay those of the real interactions.
    """
    records = [record for record in read_records(run, task) if record["chosen"] is not None]
    if task == "direct":
        rows = [
            (r["user"], r["chosen"], other)
            for r in records
            for other in r["candidates"]
            if other != r["chosen"]
        ]
        pairs = np.array(rows, dtype=np.int64).reshape(-1, 3)
        return replace(plain, extra_pairs=pairs if len(pairs) else None)
    rng = np.random.default_rng([run.config.seed, 42])
    sequences = list(plain.sequences)
    for record in records:
        user = record["user"]
        position = int(rng.integers(0, len(sequences[user]) + 1))
        sequences[user] = np.insert(sequences[user], position, record["chosen"])
    return replace(plain, sequences=sequences, histories=plain.sequences)


def augmented_tables(run: Run[Llama4RecConfig], tables: Tables) -> Tables:
    """The tables with the LLM's item attributes as further columns, empty where it named none."""
    asked = run.config.augment.attributes
    assert asked is not None
    found = {record["item"]: record["attributes"] or {} for record in read_records(run, "rating")}
    items = tables.items
    for name in asked.names:
        values = [found.get(item, {}).get(name, "") for item in range(tables.num_items)]
        items = items.append_column(f"llm_{name}", pa.array(values, pa.string()))
    return replace(tables, items=items)
