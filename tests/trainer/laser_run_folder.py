"""A run folder as Laser's stages leave it, written by hand: few users, simulated ranks, four experts.

Shapes: N users asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from run_files import NUM_USERS, asked_users, card, write_frame, write_lines

from recloom.data_shards.artifacts import atomic_write_json
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import build_config
from recloom.trainer.metrics import one_target_metrics
from recloom.trainer.results import Results

SCIENTIFIC = "Amazon 2018 Industrial and Scientific"
NUM_ITEMS = 400
SKILL = {
    "Base": 2.0,
    "sasrec": 2.4,
    "Laser": 9.0,
    "w/o M-Former": 5.0,
    "w/o stage 1": 1.0,
    "w/o stage 2": 7.0,
}
PARAMETERS = {
    "Bi-Tuning (8 tokens and a suffix)": 9 * 576,
    "Laser in all": 525_952,
    "LoRA (rank 8, q_proj and v_proj)": 460_800,
    "full tuning": 134_515_008,
    "prompt tuning (8 tokens)": 8 * 576,
    "w/o M-Former in all": 9 * 576,
}
VALIDATION = {  # by epoch from 1; stage 2 from 0, what came in
    "laser_1": [0.04, 0.09, 0.07],
    "laser_2": [0.09, 0.09, 0.11],
    "no_mformer_1": [0.03, 0.05, 0.06],
    "no_mformer_2": [0.06, 0.05, 0.04],
    "no_stage_1_1": [0.01],
    "no_stage_1_2": [0.01, 0.02, 0.02],
}
STEPS = 8  # of an epoch
SECONDS = {"prepare": 2.0, "backbone": 30.0, "bitune_1_laser": 600.0, "rank": 50.0}


def make_config(**changes: Any) -> RunConfig:
    raw = {
        "name": "fixture",
        "system": "laser",
        "data": {"source": "movielens"},
        "model": {"path": "smollm2-135m"},
        "backbones": {"sequential": {"model": "bert4rec"}},
        "methods": ["laser", "no_mformer", "no_stage_1", "no_stage_2"],
        "baselines": ["sasrec"],
    }
    return build_config({**raw, **changes}, "fixture.yaml")


def write_laser_folder(
    folder: Path, dataset: str = SCIENTIFIC, seed: int = 2024, busy: float = 0.4, **changes: Any
) -> Path:
    """Everything that the report reads. busy: users that expert 1 takes in the last epoch of stage 1."""
    config = make_config(**{"seed": seed, **changes})
    results = Results(dataset, seed)
    protocol = f"full catalogue, {NUM_ITEMS} items, items seen stay in"
    for number, scenario in enumerate(("overall", "warm", "cold")):
        rng = np.random.default_rng([seed, number])
        size = NUM_USERS // (number + 1)
        asked = asked_users(config, scenario, size, protocol)
        shared_N = rng.exponential(60.0, size)
        for method, skill in SKILL.items():
            ranks_N = np.ceil(shared_N / skill + rng.exponential(2.0, size))
            results.add(asked, method, one_target_metrics(ranks_N, (10,)))
    write_frame(folder, config, card(dataset, NUM_ITEMS, 0.02), SECONDS)
    results.write(folder)
    atomic_write_json(folder / "parameters.json", PARAMETERS)
    for name in VALIDATION:
        write_lines(folder / "tune" / name / "metrics.jsonl", curve(name, busy))
    return folder


def curve(name: str, busy: float) -> list[dict[str, Any]]:
    """Steps of every epoch with the validation behind it."""
    values = VALIDATION[name]
    starts = name.endswith("_2") or len(values) == 1  # with a validation of what came in
    rows: list[dict[str, Any]] = []
    for place, value in enumerate(values):
        epoch = place if starts else place + 1
        rows += [step_row(name, epoch, number, busy) for number in range(STEPS) if epoch > 0]
        rows.append({"step": epoch * STEPS, "epoch": epoch, "validation_N@10": value})
    return rows


def step_row(name: str, epoch: int, number: int, busy: float) -> dict[str, Any]:
    step = (epoch - 1) * STEPS + number + 1
    loss = 7.0 / step**0.3
    row = {"step": step, "epoch": epoch - 1, "loss": loss + 0.01, "contrastive": loss}
    row |= {"tokens": 900, "samples": 4 + 4 * (number % 2), "seconds": 0.5}
    if name.startswith("no_mformer"):
        return row
    first = busy if name == "laser_1" and epoch == 3 else 0.25
    rest = (1 - first) / 3
    return row | {"balance": 1.1, "expert_0": rest, "expert_1": first, "expert_2": rest, "expert_3": rest}
