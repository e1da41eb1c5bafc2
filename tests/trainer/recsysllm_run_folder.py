"""A run folder as RecSysLLM's stages leave it, written by hand: five families, simulated ranks, short texts.

Shapes: N users asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from run_files import NUM_USERS, card, write_frame, write_lines

from recloom.trainer import metrics, text_metrics
from recloom.trainer.config import RunConfig
from recloom.trainer.config_io import build_config
from recloom.trainer.report.results import INVALID
from recloom.trainer.results import AskedUsers, Results, everyone

BEAUTY = "Amazon 2014 Beauty"
NUM_ITEMS = 400
SKILL = {
    "Base": 3.0,
    "RecSysLLM": 9.0,
    "RecSysLLM *": 8.0,
    "token masking": 5.0,
    "token masking *": 4.0,
}
ONE_FAMILY = {"sequential task only": 2.0, "sequential task only *": 1.5}
FREE = {"RecSysLLM, free": 0.4, "RecSysLLM *, free": 0.3}
REFERENCE = "a soft brush that does what it should and lasts"
LOSSES = {"recsysllm": 2.0, "token_masks": 2.4, "sequential_only": 1.5}
STEPS = 12  # of an epoch
SECONDS = {"prepare": 2.0, "corpus": 9.0, "pretrain_recsysllm": 600.0, "generate_recsysllm": 250.0}


def make_config(**changes: Any) -> RunConfig:
    raw = {
        "name": "fixture",
        "system": "recsysllm",
        "data": {"source": "movielens"},
        "model": {"path": "smollm2-135m"},
        "backbones": {
            "sequential": {"model": "sasrec"},
            "direct": {"model": "mf"},
            "rating": {"model": "deepfm"},
        },
        "methods": ["recsysllm", "token_masks", "sequential_only"],
    }
    return build_config({**raw, **changes}, "fixture.yaml")


def asked_rows(config: RunConfig, task: str) -> AskedUsers:
    backbone = getattr(config.backbones, task, None)
    count_U = 3 + np.arange(NUM_USERS) % 9
    name = "" if backbone is None else backbone.model
    return AskedUsers(task, name, f"how {task} asks", np.arange(NUM_USERS), count_U, everyone(NUM_USERS))


def write_recsysllm_folder(folder: Path, dataset: str = BEAUTY, seed: int = 2024, **changes: Any) -> Path:
    """Everything that the report reads."""
    config = make_config(**{"seed": seed, **changes})
    results = Results(dataset, seed)
    for number, task in enumerate(("rating", "sequential", "explanation", "review", "direct")):
        rng, asked = np.random.default_rng([seed, number]), asked_rows(config, task)
        methods = SKILL | (ONE_FAMILY if task == "sequential" else {})
        for method, skill in methods.items():
            if method == "Base" and not asked.backbone:
                continue
            if task == "rating":
                add_ratings(results, asked, method, rng.normal(0, 4 / (skill + 2), NUM_USERS))
            elif task in ("sequential", "direct"):
                ranks_N = np.ceil(rng.exponential(60 / skill, NUM_USERS))
                results.add(asked, method, metrics.one_target_metrics(ranks_N, (1, 5, 10)))
            else:
                add_texts(results, asked, method, skill, rng)
        for method, share in FREE.items() if task in ("sequential", "direct") else ():
            hits_N = (rng.random(NUM_USERS) < share).astype(float)
            results.add(asked, method, {"H@1": hits_N})
            results.add_row(asked, method, INVALID, 0.25, NUM_USERS)
    write_frame(folder, config, card(dataset, NUM_ITEMS, 0.02), SECONDS)
    results.write(folder)
    for name, loss in LOSSES.items():
        write_lines(folder / "tune" / name / "metrics.jsonl", curve(loss))
    return folder


def add_ratings(results: Results, asked: AskedUsers, method: str, errors_N: np.ndarray) -> None:
    """Measures as the evaluation gives them."""
    results.add_row(asked, method, "RMSE", float(np.sqrt((errors_N**2).mean())), len(errors_N))
    results.add_mean(asked, method, "MAE", np.abs(errors_N))
    results.add_users(asked, method, "AE", np.abs(errors_N))
    results.add_users(asked, method, "SE", errors_N**2)
    if method != "Base":
        results.add_row(asked, method, INVALID, 0.05, len(errors_N))


def add_texts(
    results: Results, asked: AskedUsers, method: str, skill: float, rng: np.random.Generator
) -> None:
    """Beginnings of the reference, longer where the skill is greater; one answer is empty."""
    words = REFERENCE.split()
    lengths = np.minimum(rng.poisson(skill, NUM_USERS), len(words)).tolist()
    texts = [" ".join([*words[:length], "or", "not"]) for length in lengths]
    texts[0] = ""
    references = [REFERENCE] * NUM_USERS
    for order in (2, 4):
        results.add_row(
            asked, method, f"BLEU-{order}", text_metrics.bleu(texts, references, order), NUM_USERS
        )
    results.add(asked, method, text_metrics.rouge_scores(texts, references))
    results.add_row(asked, method, INVALID, 1 / NUM_USERS, NUM_USERS)


def curve(loss: float) -> list[dict[str, Any]]:
    """One epoch's steps with the validation at its end."""
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            "epoch": 0,
            "loss": loss / step**0.2,
            "tokens": 900,
            "samples": 4,
            "seconds": 0.5,
        }
        for step in range(1, STEPS + 1)
    ]
    return [*rows, {"step": STEPS, "epoch": 0, "validation_loss": loss / 2}]
