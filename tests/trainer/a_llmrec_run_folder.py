"""A run folder as A-LLMRec's stages leave it, written by hand: few users, simulated ranks, made-up times.

Shapes: N users asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recloom.data_shards.artifacts import atomic_write_json, atomic_write_text
from recloom.data_shards.cards import AMAZON
from recloom.trainer import metrics
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import build_config, dump_config

BEAUTY = "Amazon 2018 Luxury Beauty"
NUM_USERS = 60
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


def card(dataset: str) -> dict[str, Any]:
    measured = {"users": 60, "items": 40, "interactions": 480, "density": 0.2}
    paper_table = AMAZON[dataset][0] if dataset in AMAZON else "A table"
    return {
        "name": dataset,
        "measured": measured,
        "average_length": 8.0,
        "tasks": {"topk": {"train": 360, "valid": 60, "test": 60}},
        "paper": None,
        "paper_table": paper_table,
    }


class Writer:
    """Rows of results.jsonl and per_user.parquet, as the stage `evaluate` writes them."""

    def __init__(self, config: RunConfig, dataset: str) -> None:
        (self.task,) = config.backbones.tasks
        self.backbone = getattr(config.backbones, self.task).model
        self.config, self.dataset = config, dataset
        self.rows: list[dict[str, Any]] = []
        self.per_user: list[dict[str, Any]] = []

    def add(self, scenario: str, method: str, ranks_N: np.ndarray, ks: tuple[int, ...]) -> None:
        for k in ks:
            self.add_metric(scenario, method, f"H@{k}", metrics.hit_rate(ranks_N, k))
            if k > 1:
                self.add_metric(scenario, method, f"N@{k}", metrics.ndcg(ranks_N, k))
        if method != "Base":
            self.add_metric(scenario, method, "greedy H@1", metrics.hit_rate(ranks_N, 1))

    def add_metric(self, scenario: str, method: str, metric: str, values_N: np.ndarray) -> None:
        place = {
            "task": self.task,
            "scenario": scenario,
            "backbone": self.backbone,
            "method": method,
            "metric": metric,
        }
        full = scenario.endswith("_full")
        told = {
            "dataset": self.dataset,
            "split": "test",
            "value": float(values_N.mean()),
            "seed": self.config.seed,
            "users": len(values_N),
            "protocol": "full catalogue, 40 items" if full else "1 + 19 candidates, drawn with seed 0",
        }
        self.rows.append({**place, **told})
        for user, value in enumerate(values_N.tolist()):
            self.per_user.append({**place, "user": user, "num_interactions": 3 + user % 9, "value": value})


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
    writer = Writer(config, dataset)
    for number, scenario in enumerate(scenarios):
        rng = np.random.default_rng([seed, number])
        size = NUM_USERS // (number + 1)
        shared_N = rng.exponential(6.0, size)
        for method, skill in SKILL.items():
            ranks_N = np.minimum(20, np.ceil(shared_N / skill + rng.exponential(0.4, size)))
            writer.add(scenario, method, ranks_N, ks)
    atomic_write_text(folder / "config.yaml", dump_config(config))
    atomic_write_json(folder / "env.json", {"python": "3.11.2", "cpu_cores": 2, "packages": {"torch": "2"}})
    atomic_write_json(folder / "data" / "card.json", card(dataset))
    write_lines(folder / "results.jsonl", writer.rows)
    pq.write_table(pa.Table.from_pylist(writer.per_user), folder / "per_user.parquet")
    atomic_write_json(folder / "times.json", TIMES)
    write_curves(folder)
    for name, seconds in SECONDS.items():
        marker = {"stage": name, "title": name, "digest": "0", "outputs": {}, "seconds": seconds}
        atomic_write_json(folder / "stages" / f"{name}.json", marker)
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


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
