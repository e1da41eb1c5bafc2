"""Stage aggregate: adaptive aggregation (section 4.4) and the results.

alpha_1 and alpha_2 are chosen on validation by NDCG at the largest k (RMSE for ratings), never on
test. Shapes: B users, K = k' candidates.
"""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recloom.data_shards.artifacts import atomic_write_bytes, atomic_write_json, atomic_write_text
from recloom.data_shards.splits import Interactions, Splits
from recloom.data_shards.tables import Tables
from recloom.trainer import metrics
from recloom.trainer.collaborative.evaluate import predict_ratings
from recloom.trainer.requests import Answer, read_answers
from recloom.trainer.stages import Run
from recloom.trainer.systems.llama4rec.answers import Ranked, Rated, ranked_answers, rated_answers
from recloom.trainer.systems.llama4rec.backbones import Kind, open_backbone
from recloom.trainer.systems.llama4rec.prepare import load_data
from recloom.trainer.systems.llama4rec.questions import (
    CandidateLists,
    Part,
    asked_rating_rows,
    candidate_lists,
    rating_labels,
    rating_scale,
)
from recloom.trainer.systems.llama4rec.results import Results
from recloom.trainer.systems.llama4rec.tune import tuned_models

Alphas = tuple[float, float]


def long_tail_coefficient(num_interactions: np.ndarray) -> np.ndarray:
    """Eq. (5): log(N(u) + 1)."""
    return np.log(num_interactions + 1.0)


def llm_weight(
    coefficient: np.ndarray, low: float, high: float, alpha_1: float, alpha_2: float
) -> np.ndarray:
    """Eq. (7): max((l_max - l_u) / (l_max - l_min), alpha_2) * alpha_1; one value a user.

    Where all users are equally active the first term is taken as 0, so that alpha_2 decides.
    """
    span = high - low
    tail = np.zeros_like(coefficient) if span == 0 else (high - coefficient) / span
    return np.maximum(tail, alpha_2) * alpha_1


def position_utility(num_items: int, c: float) -> np.ndarray:
    """Section 4.4.2: -s * C for the positions s = 1 .. k'."""
    return -c * np.arange(1, num_items + 1)


def aggregate_rank(order: list[int], candidates: list[int], target: int, alpha: float, c: float) -> float:
    """The target's rank after eq. (6), inf when it is no candidate; ties count against it.

    order: the LLM's ranking of all candidates; candidates: the backbone's.
    """
    if target not in candidates:
        return np.inf
    utility = position_utility(len(candidates), c)
    llm = dict(zip(order, utility, strict=True))
    total = np.array(
        [alpha * llm[item] + (1 - alpha) * rec for item, rec in zip(candidates, utility, strict=True)]
    )
    return float((total >= total[candidates.index(target)] - 1e-12).sum())


@dataclass(frozen=True)
class Activity:
    """N(u) of every user in the training part, and the range of the coefficient over active users."""

    count_U: np.ndarray
    low: float
    high: float

    def weight(self, users_B: np.ndarray, alphas: Alphas) -> np.ndarray:
        return llm_weight(long_tail_coefficient(self.count_U[users_B]), self.low, self.high, *alphas)


def activity(train: Interactions, num_users: int) -> Activity:
    count_U = np.bincount(train.user_N, minlength=num_users)
    coefficient = long_tail_coefficient(count_U[count_U > 0])
    return Activity(count_U, float(coefficient.min()), float(coefficient.max()))


def run_aggregate(run: Run) -> None:
    tables, splits = load_data(run)
    answers = [a for name in tuned_models(run.config) for a in read_answers(run.path(f"bulk/rank_{name}"))]
    results = Results(tables, run.config)
    chosen: dict[str, Any] = {}
    for task in run.config.backbones.tasks:
        work = rating_task if task == "rating" else topk_task
        chosen[task] = work(
            run, tables, splits, task, [a for a in answers if a.meta["task"] == task], results
        )
    atomic_write_text(run.path("results.jsonl"), "".join(json.dumps(row) + "\n" for row in results.rows))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(results.per_user), buffer)
    atomic_write_bytes(run.path("per_user.parquet"), buffer.getvalue())
    atomic_write_json(run.path("aggregate.json"), chosen)


def best_alphas(values: dict[Alphas, float], largest: bool) -> tuple[Alphas, float]:
    """The best cell of the grid; the first one wins a tie, so equal cells keep the LLM's weight small."""
    sign = 1 if largest else -1
    best = max(values, key=lambda alphas: (sign * values[alphas], -alphas[0], -alphas[1]))
    return best, values[best]


def grid(run: Run) -> list[Alphas]:
    return list(itertools.product(run.config.evaluate.alpha_1, run.config.evaluate.alpha_2))


def select(answers: list[Answer], method: str, part: Part) -> list[Answer]:
    return [a for a in answers if a.meta["method"] == method and a.meta["part"] == part]


def topk_task(
    run: Run, tables: Tables, splits: Splits, task: str, answers: list[Answer], results: Results
) -> dict[str, Any]:
    """Base, Base+DA, IFT and Llama4Rec of a top-k task."""
    config, k = run.config, max(run.config.evaluate.ks)
    active = activity(splits.topk.train, tables.num_users)

    def lists_of(kind: Kind, part: Part) -> CandidateLists:
        backbone = open_backbone(run, kind, task)
        return candidate_lists(backbone, splits.topk, tables.num_users, part, config.rank.top_k)

    base, augmented_valid, augmented = (
        lists_of("base", "test"),
        lists_of("augmented", "valid"),
        lists_of("augmented", "test"),
    )
    valid = ranked_answers(select(answers, "llama4rec", "valid"), augmented_valid, tables.titles)
    test = ranked_answers(select(answers, "llama4rec", "test"), augmented, tables.titles)
    ift = ranked_answers(select(answers, "ift", "test"), base, tables.titles)
    values = {
        alphas: float(metrics.ndcg(aggregated(run, augmented_valid, valid, active, alphas), k).mean())
        for alphas in grid(run)
    }
    alphas, value = best_alphas(values, largest=True)
    ranks = {
        "Base": base.ranks_B,
        "IFT": listed(base, ift),
        "Base+DA": augmented.ranks_B,
        "Llama4Rec": aggregated(run, augmented, test, active, alphas),
    }
    for method, ranks_B in ranks.items():
        results.add_topk(task, method, base.users_B, ranks_B, active.count_U)
    results.add_ceiling(task, "Ceiling", base.reachable_B)
    results.add_ceiling(task, "Ceiling+DA", augmented.reachable_B)
    for method, asked in (("IFT", ift), ("Llama4Rec", test)):
        results.add_invalid(task, method, asked.num_bad, asked.num_asked)
    return {
        "alpha_1": alphas[0],
        "alpha_2": alphas[1],
        "metric": f"N@{k}",
        "validation": value,
        "grid": [[*cell, value] for cell, value in values.items()],
    }


def aggregated(
    run: Run, lists: CandidateLists, ranked: Ranked, active: Activity, alphas: Alphas
) -> np.ndarray:
    """Ranks of the targets after adaptive aggregation; inf beyond the candidates."""
    weight_B = active.weight(lists.users_B, alphas)
    c = run.config.evaluate.utility_c
    return np.array(
        [
            aggregate_rank(order, items, int(target), weight, c)
            for order, items, target, weight in zip(
                ranked.orders, ranked.candidates, lists.targets_B, weight_B, strict=True
            )
        ]
    )


def listed(lists: CandidateLists, ranked: Ranked) -> np.ndarray:
    """Ranks of the targets in the LLM's own order; inf beyond the candidates."""
    pairs = zip(ranked.orders, lists.targets_B.tolist(), strict=True)
    return np.array([order.index(target) + 1 if target in order else np.inf for order, target in pairs])


def rating_task(
    run: Run, tables: Tables, splits: Splits, task: str, answers: list[Answer], results: Results
) -> dict[str, Any]:
    """Base, IFT (the LLM alone) and Llama4Rec of the rating task, over the users that were asked."""
    backbone = open_backbone(run, "augmented", task)
    active = activity(splits.rating.train, tables.num_users)
    scale = rating_scale(tables)
    labels = rating_labels(tables) if run.config.rank.rating_rule == "expected" else []
    parts: dict[Part, tuple[Interactions, np.ndarray, Rated]] = {}
    both: tuple[Part, Part] = ("valid", "test")
    for part in both:
        asked = asked_rating_rows(run.config, getattr(splits.rating, part))
        base = predict_ratings(backbone, asked.user_N, asked.item_N)
        parts[part] = (
            asked,
            base,
            rated_answers(select(answers, "llama4rec", part), asked, labels, base, scale),
        )

    def mixed(part: Part, alphas: Alphas) -> np.ndarray:
        rows, base, rated = parts[part]
        weight = active.weight(rows.user_N, alphas)
        return weight * rated.values_N + (1 - weight) * base

    values = {a: metrics.rmse(mixed("valid", a), parts["valid"][0].rating_N) for a in grid(run)}
    alphas, value = best_alphas(values, largest=False)
    rows, base, rated = parts["test"]
    ift = rated_answers(select(answers, "ift", "test"), rows, labels, base, scale)
    for method, predicted in (("Base", base), ("IFT", ift.values_N), ("Llama4Rec", mixed("test", alphas))):
        results.add_rating(method, rows, predicted, active.count_U)
    for method, asked_answers in (("IFT", ift), ("Llama4Rec", rated)):
        results.add_invalid(task, method, asked_answers.num_bad, asked_answers.num_asked)
    return {
        "alpha_1": alphas[0],
        "alpha_2": alphas[1],
        "metric": "RMSE",
        "validation": value,
        "grid": [[*cell, value] for cell, value in values.items()],
    }
