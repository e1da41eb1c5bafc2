"""Run by test_plan_measured.py on every rank: two steps of the real loop, and what they took.

Memory is what torch's CPU allocator has handed out, of which the profiler writes down every piece with the
total; so the interpreter, libraries and gloo's own buffers are not in it. Bytes are those of the messages
that DeepSpeed gives to torch.distributed.

usage: plan_ranks.py JSON, a file with `model`, `bucket`, `out` and `cases` of one `tensor`
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from recloom.data_shards.stream import PackedStream
from recloom.trainer import block_attention
from recloom.trainer.config import ModelBlock, ParallelBlock, TrainingBlock
from recloom.trainer.engine import Engine, deepspeed_json, load_partitioned, start_ranks
from recloom.trainer.loop import Loop
from recloom.trainer.loss import AnswerLoss

# A message's size by the argument that is whole: what is gathered, or what is reduced.
WHOLE = {
    "all_gather_into_tensor": 0,
    "all_gather_single": 0,
    "reduce_scatter_tensor": 1,
    "reduce_scatter_single": 1,
    "all_reduce": 0,
    "reduce": 0,
    "all_gather": 0,
    "broadcast": 0,
}


class Samples:
    """So many samples of 256 tokens, of which the last 64 are the answer."""

    has_slots = False

    def __init__(self, count: int, vocab: int) -> None:
        self.lengths_N = np.full(count, 256, np.int32)
        self.num_prompt_N = np.full(count, 192, np.int32)
        self.ids_N = np.random.default_rng(7).integers(3, vocab, (count, 256)).astype(np.int32)

    def ids(self, index: int) -> np.ndarray:
        return self.ids_N[index]

    def slots(self, index: int) -> list[Any]:
        return []


def main(wanted: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    block_attention.LONGEST = 0  # attention as on a GPU, which keeps no probabilities
    moved: Counter[str] = Counter()
    count_messages(moved)  # before DeepSpeed takes the functions
    rank, _ = start_ranks(ParallelBlock(tensor=wanted["cases"][0]["tensor"]))
    found = []
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # the profiler sees this thread's memory alone
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as seen:
        for number, case in enumerate(wanted["cases"]):
            gc.collect()
            with torch.profiler.record_function(f"{number} begins"):
                torch.zeros(1)
            folder = Path(wanted["out"]).parent / f"checkpoints-{number}"
            train(case, wanted["model"], wanted["bucket"], number, moved, folder)
            found.append({"case": case, "moved": dict(moved), "disk": disk(folder)})
            gc.collect()
    if rank == 0:
        trace = Path(wanted["out"] + ".trace")
        seen.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
        for number, row in enumerate(found):
            row["peak"] = peak(events, f"{number} step") - peak(events, f"{number} begins")
        Path(wanted["out"]).write_text(json.dumps(found, indent=1))
    dist.barrier()
    os._exit(0)


def train(
    case: dict[str, Any], path: str, bucket: int, number: int, moved: Counter[str], folder: Path
) -> None:
    """Two steps of one setting, the messages of the second, a checkpoint."""
    parallel = ParallelBlock(zero_stage=case["stage"], tensor=case["tensor"])
    groups = dist.get_world_size() // parallel.tensor
    training = TrainingBlock(
        pack_length=512,
        context=512,
        rows_per_step=groups * case["rows"],
        window=2 * groups * case["rows"],
        epochs=1,
    )
    model = ModelBlock(path=path, dtype=case["dtype"])
    ds_config = deepspeed_json(model, training, parallel, dist.get_world_size())
    # DeepSpeed's own bucket is a gigabyte, beside which a small model's bytes would not show.
    ds_config["zero_optimization"]["reduce_bucket_size"] = bucket
    network = load_partitioned(path, ds_config, model, case["checkpointing"])
    engine = Engine(network, ds_config)
    layout, rows = engine.layout, training.rows_per_step
    samples = Samples(4 * rows, network.config.vocab_size)
    stream = PackedStream(samples, 512, rows, training.window, 3, layout.data_rank, layout.data_size)
    loop = Loop(engine, stream, training, AnswerLoss("packed", engine.device, engine.vocabulary), [])
    for batch in stream:
        moved.clear()
        with torch.profiler.record_function(f"{number} step"):
            loop.train_step(batch, 0.0, 0.0)
        loop.step += 1
    assert loop.step == 2
    engine.save(folder, loop.step, loop.state(), 1)
    engine.close()


def disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.pt"))


def count_messages(moved: Counter[str]) -> None:
    """Count the bytes of each message by the name of its collective."""
    for name, place in WHOLE.items():
        if hasattr(dist, name):
            setattr(dist, name, counted(getattr(dist, name), name, place, moved))


def counted(send: Callable[..., Any], name: str, place: int, moved: Counter[str]) -> Callable[..., Any]:
    def sent(*arguments: Any, **named: Any) -> Any:
        given = [*arguments, *named.values()]
        parts = given[place] if isinstance(given[place], list) else [given[place]]
        if dist.get_world_size(named.get("group")) > 1:
            moved[name] += sum(part.numel() * part.element_size() for part in parts)
        return send(*arguments, **named)

    return sent


def peak(events: list[dict[str, Any]], name: str) -> int:
    """The most bytes held while the last part of this name ran."""
    part = max((e for e in events if e.get("name") == name and "dur" in e), key=lambda e: e["ts"])
    last = part["ts"] + part["dur"]
    totals = [
        (e["ts"], e["args"]["Total Allocated"])
        for e in events
        if e.get("name") == "[memory]" and e["args"]["Device Type"] == 0 and e["ts"] <= last
    ]
    before = [total for ts, total in sorted(totals) if ts < part["ts"]]
    return int(max((before or [0])[-1:] + [total for ts, total in totals if ts >= part["ts"]]))


main(json.loads(Path(sys.argv[1]).read_text()))
