"""Run by test_a_llmrec_projection.py on every rank: ZeRO steps of F_U and F_I behind a frozen LLM.

usage: projected_ranks.py MODEL OUT ZERO_STAGE

Shapes: U users, I items, D and E widths of their vectors.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from recloom.data_shards.renderer import SlotPosition
from recloom.data_shards.stream import PackedStream
from recloom.trainer.config import ModelBlock, ParallelBlock
from recloom.trainer.engine import Engine, deepspeed_json, embedding_scale, load_partitioned, start_ranks
from recloom.trainer.loop import Loop
from recloom.trainer.loss import AnswerLoss
from recloom.trainer.systems.a_llmrec.projection import ProjectedLM, Projection, Widths
from recloom.trainer.systems.a_llmrec.settings import ProjectBlock

NUM_SAMPLES, NUM_USERS, NUM_ITEMS = 9, 4, 6
PARTS = {"both": (True, True), "items": (False, True), "users": (True, False)}
SAVED_STEP = 2


class SlotSamples:
    """Random ids with places for a user and some items; an item may stand in a prompt twice.

    Nine of them, so that of the four rows of an epoch's third step three are empty.
    """

    has_slots = True

    def __init__(self, user: bool, item: bool) -> None:
        rng = np.random.default_rng(7)
        self.lengths_N = rng.integers(16, 30, NUM_SAMPLES).astype(np.int32)
        self.num_prompt_N = (self.lengths_N - rng.integers(2, 5, NUM_SAMPLES)).astype(np.int32)
        self._ids = [rng.integers(3, 49000, length).astype(np.int32) for length in self.lengths_N]
        self._slots: list[list[SlotPosition]] = []
        for _ in range(NUM_SAMPLES):
            places: list[SlotPosition] = [(0, "user", int(rng.integers(NUM_USERS)))]
            for place, kind in ((3, "history"), (6, "history"), (9, "candidate"), (10, "candidate")):
                places.append((place, kind, int(rng.integers(NUM_ITEMS))))
            self._slots.append([slot for slot in places if (user if slot[1] == "user" else item)])

    def ids(self, index: int) -> np.ndarray:
        return self._ids[index]

    def slots(self, index: int) -> list[SlotPosition]:
        return self._slots[index]


def vectors() -> tuple[Tensor, Tensor]:
    """users_UD and items_IE."""
    drawn = torch.Generator().manual_seed(11)
    return torch.randn(NUM_USERS, 5, generator=drawn), torch.randn(NUM_ITEMS, 7, generator=drawn)


def training_block() -> ProjectBlock:
    return ProjectBlock(epochs=2, learning_rate=1e-3)


def make_stream(parts: str, rank: int, world_size: int) -> PackedStream:
    training = training_block()
    source = SlotSamples(*PARTS[parts])
    return PackedStream(source, training.pack_length, training.rows_per_step, 16, 3, rank, world_size)


def build(model_path: str, ds_config: dict[str, Any], model: ModelBlock, parts: str) -> ProjectedLM:
    llm = load_partitioned(model_path, ds_config, model, gradient_checkpointing=False, frozen=True)
    users_UD, items_IE = vectors()
    user, item = PARTS[parts]
    torch.manual_seed(0)
    projection = Projection(Widths(5 if user else None, 7 if item else None, 12, llm.config.hidden_size))
    projection.match_scale(users_UD, items_IE, embedding_scale(llm))
    return ProjectedLM(llm, projection, users_UD, items_IE)


def train(engine: Engine, loop: Loop, checkpoints: Path | None) -> list[list[float]]:
    """Losses and gradient norms of the steps that are left."""
    rows = []
    while loop.stream.epoch < loop.training.epochs:
        for batch in loop.stream:
            record = loop.train_step(batch, 0.0, 0.0)
            loop.step += 1
            rows.append([record.loss, record.gradient_norm])
            if checkpoints is not None and loop.step == SAVED_STEP:
                engine.save(checkpoints, loop.step, loop.state(), keep=1)
    return rows


def resume(engine: Engine, network: ProjectedLM, loop: Loop, checkpoints: Path) -> None:
    """Go on from the checkpoint with other weights than those that it was started with."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(network.projection.parameters()), modifier_rank=0):
        for weight in network.projection.parameters():
            torch.nn.init.constant_(weight, 7.0)
    state = engine.load(checkpoints)
    assert state is not None
    loop.load_state(state)


def frozen_digest(llm: torch.nn.Module, is_partitioned: bool) -> str:
    """A hash of every weight of the LLM."""
    import deepspeed

    found = hashlib.sha256()
    with deepspeed.zero.GatheredParameters(list(llm.parameters()), enabled=is_partitioned):
        for name, weight in sorted(llm.named_parameters()):
            found.update(name.encode() + weight.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    model_path, out, stage = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    parallel = ParallelBlock(zero_stage=stage)  # type: ignore[arg-type]
    rank, world_size = start_ranks(parallel)
    training, model = training_block(), ModelBlock(path=model_path, dtype="float32")
    ds_config = deepspeed_json(model, training, parallel, world_size)
    told: dict[str, Any] = {}
    for name, parts, again in (*((parts, parts, False) for parts in PARTS), ("resumed", "both", True)):
        network = build(model_path, ds_config, model, parts)
        engine = Engine(network, ds_config)
        objective = AnswerLoss("packed", engine.device)
        loop = Loop(engine, make_stream(parts, rank, world_size), training, objective, [])
        checkpoints = out / "checkpoints" if parts == "both" else None
        if again:
            resume(engine, network, loop, out / "checkpoints")
            checkpoints = None
        told[name] = {
            "steps": train(engine, loop, checkpoints),
            "trained": [name for name, weight in network.named_parameters() if weight.requires_grad],
            "frozen": frozen_digest(network.llm, stage == 3),
        }
        weights = engine.trained_state()
        if rank == 0:
            whole = {name: weight.detach().clone() for name, weight in weights.items()}
            safetensors.torch.save_file(whole, out / f"{name}.safetensors")
        engine.close()
    if rank == 0:
        (out / "told.json").write_text(json.dumps(told))
    sys.stdout.flush()
    torch.distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
