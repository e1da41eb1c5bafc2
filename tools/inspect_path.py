"""`recloom inspect`: any sample, answer or augmented record, readable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recloom.data_shards.errors import UserError
from recloom.data_shards.shards import ShardReader, verify_shards
from recloom.trainer.requests import REQUESTS, read_answers


def describe(path: Path, index: int, verify: bool) -> str:
    """What lies at `path`: a folder of shards, a bulk pass, or a .jsonl file.

    Raises UserError for a path that is none of these, an index out of range, or damaged shards.
    """
    if verify:
        manifest = verify_shards(path)
        count, shards = manifest["num_samples"], manifest["num_shards"]
        return f"{path}: {count} samples in {shards} shards, all bytes as written"
    if path.is_dir() and (path / REQUESTS).is_file():
        answers = read_answers(path)
        answer = answers[checked(index, len(answers), path)]
        return f"answer {index} of {len(answers)}\n{as_text(vars(answer))}"
    if path.is_dir():
        return describe_sample(path, index)
    if path.suffix == ".jsonl" and path.is_file():
        lines = path.read_text().splitlines()
        line = lines[checked(index, len(lines), path)]
        try:
            record = json.loads(line)
        except ValueError:
            raise UserError(f"{path}: line {index + 1} is no valid JSON: make the file again.") from None
        return f"record {index} of {len(lines)}\n{as_text(record)}"
    raise UserError(
        f"{path}: nothing to inspect there: name a folder of shards, a bulk pass, or a .jsonl file."
    )


def checked(index: int, count: int, path: Path) -> int:
    if not 0 <= index < count:
        raise UserError(f"--index {index}: {path} holds {count}: choose 0 to {count - 1}.")
    return index


def describe_sample(folder: Path, index: int) -> str:
    """A training sample: what it says, which tokens carry loss, where entities and slots lie."""
    reader = ShardReader(folder)
    record = reader.record(checked(index, len(reader), folder))
    ids = reader.ids(index)
    num_prompt = record["num_prompt"]
    spans = [
        f"  tokens {start}-{end}: {kind} {number}" for start, end, kind, number in record["entity_spans"]
    ]
    slots = [f"  token {position}: {kind} {number}" for position, kind, number in record["slots"]]
    return "\n".join(
        [
            f"sample {index} of {len(reader)}, {record['key']}, {as_text(record['meta'])}",
            f"--- prompt ({num_prompt} tokens, no loss) and answer ({len(ids) - num_prompt} tokens, loss)",
            record["text"],
            f"--- token ids: {ids.tolist()}",
            f"--- entities: {len(spans)}",
            *spans,
            f"--- slots: {len(slots)}",
            *slots,
        ]
    )


def as_text(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=list)
