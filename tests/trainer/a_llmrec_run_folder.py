"""A run folder as A-LLMRec's stages leave it, written by hand: few users, simulated ranks, made-up times.

Shapes: N users asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from run_files import NUM_USERS, asked_users, card, write_frame, write_lines

from recloom.data_shards.artifacts import atomic_write_json
from recloom.data_shards.cards import AMAZON
from recloom.trainer import metrics
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import build_config
from recloom.trainer.results import Results

BEAUTY = "Amazon 2018 Luxury Beauty"
SKILL = {
    "Base": 3.0,
    "LLM-only": 0.4,
    "TALLRec": 2.0,
    "MLP-LLM": 3.5,
    "A-LLMRec": 9.0,
    "A-LLMRec (SBERT)": 7.0,
}
TIMES = {
    "LLM-only": {"question_seconds": 0.5},
    "TALLRec": {"question_seconds": 0.8, "training_seconds": 7200.0, "steps": 90},
    "MLP-LLM": {"question_seconds": 0.6, "training_seconds": 1500.0, "steps": 90},
    "A-LLMRec": {
        "question_seconds": 0.6,
        "training_seconds": 1800.0,
        "alignment_seconds": 600.0,
        "steps": 90,
    },
    "A-LLMRec (SBERT)": {
        "question_seconds": 0.62,
        "training_seconds": 1800.0,
        "alignment_seconds": 600.0,
        "steps": 90,
    },
}
SECONDS = {"prepare": 2.0, "backbone": 30.0, "align": 600.0, "project_a_llmrec": 1800.0, "rank": 250.0}
LOSSES = {"matching": 0.002, "item_recon": 0.1, "text_recon": 0.05, "rec": 1.4}


def make_config(**changes: Any) -> RunConfig:
    raw = {
        "name": "fixture",
        "system": "a_llmrec",
        "data": {"source": "movielens"},
        "model": {"path": "smollm2-135m"},
        "backbones": {"sequential": {"model": "sasrec"}},
        "methods": ["llm_only", "tallrec", "mlp_llm", "a_llmrec"],
    }
    return build_config({**raw, **changes}, "fixture.yaml")


def measured(method: str, ranks_N: np.ndarray, ks: tuple[int, ...]) -> dict[str, np.ndarray]:
    """What the stage `evaluate` measures of a method."""
    found = metrics.topk_metrics(ranks_N, ks)
    found.pop("N@1", None)
    return found if method == "Base" else {**found, "greedy H@1": metrics.hit_rate(ranks_N, 1)}


def write_a_llmrec_folder(
    folder: Path,
    dataset: str = BEAUTY,
    scenarios: tuple[str, ...] = ("overall", "warm", "cold"),
    seed: int = 2024,
    ks: tuple[int, ...] = (1, 5, 10),
    **changes: Any,
) -> Path:
    """Everything that the report reads; changes: blocks of the config."""
    config = make_config(**{"seed": seed, **changes})
    results = Results(dataset, seed)
    for number, scenario in enumerate(scenarios):
        rng = np.random.default_rng([seed, number])
        size = NUM_USERS // (number + 1)
        full = scenario.endswith("_full")
        protocol = "full catalogue, 40 items" if full else "1 + 19 candidates, drawn with seed 0"
        asked = asked_users(config, scenario, size, protocol)
        shared_N = rng.exponential(6.0, size)
        for method, skill in SKILL.items():
            ranks_N = np.minimum(20, np.ceil(shared_N / skill + rng.exponential(0.4, size)))
            results.add(asked, method, measured(method, ranks_N, ks))
    paper_table = AMAZON[dataset][0] if dataset in AMAZON else "A table"
    write_frame(folder, config, {**card(dataset, 40, 0.2), "paper_table": paper_table}, SECONDS)
    results.write(folder)
    atomic_write_json(folder / "times.json", TIMES)
    write_curves(folder)
    return folder


def write_curves(folder: Path) -> None:
    steps = range(1, 61)
    aligned = [
        {
            "step": step,
            "epoch": 1 + step // 31,
            **{name: start / step**0.5 for name, start in LOSSES.items()},
            "total": 1.5 / step**0.5,
        }
        for step in steps
    ]
    write_lines(folder / "align" / "metrics.jsonl", aligned)
    for name in ("a_llmrec", "mlp_llm", "tallrec"):
        tuned = [
            {
                "step": step,
                "epoch": 0,
                "loss": 2.0 / step**0.5,
                "tokens": 900,
                "samples": 4,
                "seconds": 30.0,
            }
            for step in steps
        ]
        write_lines(folder / "tune" / name / "metrics.jsonl", [*tuned, {"step": 60, "validation_loss": 0.31}])


def write_genres(folder: Path) -> None:
    answers = [
        {
            "user": user,
            "method": method,
            "prompt": f"Prompt of {user} & co",
            "answer": f"{name} <likes> {user}",
        }
        for user in (3, 11)
        for method, name in (("llm_only", "nobody"), ("a_llmrec", "somebody"))
    ]
    write_lines(folder / "genres.jsonl", answers)
