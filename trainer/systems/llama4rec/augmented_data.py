"""What the LLM made, as training data (Llama4Rec, sections 4.2.1 and 4.2.2)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from recloom.trainer.collaborative.data import TopKData
from recloom.trainer.stages import Run


def read_records(run: Run, task: str) -> list[dict[str, Any]]:
    """The audit records of one task; an answer that named no candidate has `chosen` null."""
    path = run.path(f"augment/{task}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def augmented_topk(run: Run, task: str, plain: TopKData) -> TopKData:
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
