"""Stage aggregate: what the methods come to, and the results.

alpha_1, alpha_2 and the form of ranking (listwise or pointwise) are chosen on validation by NDCG at the
largest k (RMSE for ratings), never on test. Shapes: B users with a target, N rated rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from recloom.data_shards.artifacts import atomic_write_json
from recloom.data_shards.splits import Splits
from recloom.data_shards.tables import Tables
from recloom.trainer import metrics
from recloom.trainer.collaborative.evaluate import predict_ratings
from recloom.trainer.preparation import load_data
from recloom.trainer.requests import Answer, read_answers
from recloom.trainer.results import AskedUsers, Results
from recloom.trainer.stages import Run
from recloom.trainer.systems.llama4rec.aggregation import (
    Activity,
    Alphas,
    activity,
    aggregate_rank,
    best_alphas,
)
from recloom.trainer.systems.llama4rec.answers import (
    Ranked,
    Rated,
    pointwise_answers,
    ranked_answers,
    rated_answers,
)
from recloom.trainer.systems.llama4rec.backbones import Kind, has_backbone, open_backbone
from recloom.trainer.systems.llama4rec.methods import LLAMA4REC, Asking, Method, Part, asked_as, methods
from recloom.trainer.systems.llama4rec.questions import CandidateLists, asked_rating_rows, candidate_lists
from recloom.trainer.systems.llama4rec.rating_tokens import rating_scale
from recloom.trainer.systems.llama4rec.results import (
    add_ceiling,
    add_invalid,
    add_rating,
    rating_users,
    topk_users,
)
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig
from recloom.trainer.systems.llama4rec.tune import tuned_models

BACKBONES: tuple[tuple[str, Kind], ...] = (("Base", "base"), ("Base+DA", "augmented"))
PARTS: tuple[Part, ...] = ("valid", "test")


@dataclass(frozen=True)
class Work:
    """What the tasks share."""

    run: Run[Llama4RecConfig]
    tables: Tables
    splits: Splits
    answers: list[Answer]
    results: Results

    def select(self, task: str, asking: Asking, part: Part, form: str | None = None) -> list[Answer]:
        wanted = {"task": task, "backbone": asking.backbone, "prompts": asking.prompts, "part": part}
        wanted |= {"form": form} if form else {}
        return [a for a in self.answers if all(a.meta.get(name) == text for name, text in wanted.items())]

    def grid(self, method: Method) -> list[Alphas]:
        """The weights to choose from; alpha_2 = 1 gives every user the weight alpha_1 (eq. 7)."""
        evaluate = self.run.config.evaluate
        seconds = (1.0,) if method.weight == "uniform" else evaluate.alpha_2
        return list(itertools.product(evaluate.alpha_1, seconds))


def run_aggregate(run: Run[Llama4RecConfig]) -> None:
    tables, splits = load_data(run)
    answers = [a for name in tuned_models(run.config) for a in read_answers(run.path(f"bulk/rank_{name}"))]
    work = Work(run, tables, splits, answers, Results(tables.name, run.config.seed))
    chosen = {
        task: rating_task(work) if task == "rating" else topk_task(work, task)
        for task in run.config.backbones.tasks
    }
    work.results.write(run.folder)
    atomic_write_json(run.path("aggregate.json"), chosen)


@dataclass(frozen=True)
class TopK:
    """One top-k task: the candidates of both backbones, and the LLM's orders of them."""

    work: Work
    task: str
    lists: dict[tuple[Kind, Part], CandidateLists]
    active: Activity
    asked: AskedUsers

    @property
    def forms(self) -> tuple[str, ...]:
        ranking = self.work.run.config.rank.ranking
        return ("listwise", "pointwise") if ranking == "best" else (ranking,)

    def candidates(self, method: Method, part: Part) -> CandidateLists:
        return self.lists[method.asking.backbone, part]

    def ranked(self, method: Method, part: Part, form: str) -> Ranked:
        answers = self.work.select(self.task, method.asking, part, form)
        if form == "pointwise":
            return pointwise_answers(answers, self.candidates(method, part), rating_scale(self.work.tables))
        return ranked_answers(answers, self.candidates(method, part), self.work.tables.titles)

    def ranks(self, method: Method, part: Part, ranked: Ranked, alphas: Alphas | None) -> np.ndarray:
        """Ranks of the targets in the LLM's own order (no alphas) or mixed; inf beyond the candidates."""
        lists = self.candidates(method, part)
        if alphas is None:
            return listed(lists, ranked)
        weight_B = self.active.weight(lists.users_B, alphas)
        return aggregated(lists, ranked, weight_B, self.work.run.config.evaluate.utility_c)


def topk_task(work: Work, task: str) -> dict[str, Any]:
    """Base, Base+DA and every method that asks the LLM."""
    config, tables = work.run.config, work.tables
    lists = {
        (kind, part): candidate_lists(
            open_backbone(work.run, kind, task), work.splits.topk, tables.num_users, part, config.rank.top_k
        )
        for _, kind in BACKBONES
        for part in PARTS
    }
    active = activity(work.splits.topk.train, tables.num_users)
    asked = topk_users(config, tables, task, lists["base", "test"].users_B, active.count_U)
    topk = TopK(work, task, lists, active, asked)
    for name, kind in BACKBONES:
        own, ceiling = lists[kind, "test"], name.replace("Base", "Ceiling")
        work.results.add(asked, name, metrics.topk_metrics(own.ranks_B, config.evaluate.ks))
        add_ceiling(work.results, asked, ceiling, own.reachable_B, config.rank.top_k)
    chosen = {method.name: topk_method(topk, method) for method in methods(config)}
    return {**chosen[LLAMA4REC.name], "methods": chosen}


def topk_method(topk: TopK, method: Method) -> dict[str, Any]:
    """Choose on validation, measure on test."""
    ks, results = topk.work.run.config.evaluate.ks, topk.work.results
    k = max(ks)
    grid: list[Alphas | None] = [None] if method.weight == "alone" else [*topk.work.grid(method)]
    values: dict[str, dict[Any, float]] = {}
    if len(topk.forms) * len(grid) > 1:
        for form in topk.forms:
            ranked = topk.ranked(method, "valid", form)
            values[form] = {a: ndcg(topk.ranks(method, "valid", ranked, a), k) for a in grid}
    form, alphas, value = best_form(values) if values else (topk.forms[0], None, None)
    test = topk.ranked(method, "test", form)
    ranks_B = topk.ranks(method, "test", test, alphas)
    results.add(topk.asked, method.name, metrics.topk_metrics(ranks_B, ks))
    add_invalid(results, topk.asked, method.name, test.num_bad, test.num_asked)
    by_form = {name: max(cells.values()) for name, cells in values.items()}
    chosen = {"ranking": form, "metric": f"N@{k}", "validation": value, "validation_by_form": by_form}
    if alphas is None:
        return chosen
    on_test = [[*cell, ndcg(topk.ranks(method, "test", test, cell), k)] for cell in values[form]]
    return {**chosen, **weights(alphas, values[form]), "test_grid": on_test}


def weights(alphas: Alphas, values: dict[Alphas, float]) -> dict[str, Any]:
    grid = [[*cell, value] for cell, value in values.items()]
    return {"alpha_1": alphas[0], "alpha_2": alphas[1], "grid": grid}


def best_form(values: dict[str, dict[Any, float]]) -> tuple[str, Any, float]:
    """Form and weights of the best validation value; the first form wins a tie."""
    best: dict[str, tuple[Any, float]] = {}
    for form, cells in values.items():
        best[form] = best_alphas(cells, largest=True) if None not in cells else (None, cells[None])
    form = max(best, key=lambda name: best[name][1])
    return form, *best[form]


def ndcg(ranks_B: np.ndarray, k: int) -> float:
    return float(metrics.ndcg(ranks_B, k).mean())


def aggregated(lists: CandidateLists, ranked: Ranked, weight_B: np.ndarray, c: float) -> np.ndarray:
    """Ranks of the targets after aggregation; inf beyond the candidates."""
    rows = zip(ranked.orders, ranked.candidates, lists.targets_B.tolist(), weight_B, strict=True)
    return np.array(
        [aggregate_rank(order, items, target, weight, c) for order, items, target, weight in rows]
    )


def listed(lists: CandidateLists, ranked: Ranked) -> np.ndarray:
    """Ranks of the targets in the LLM's own order; inf beyond the candidates."""
    pairs = zip(ranked.orders, lists.targets_B.tolist(), strict=True)
    return np.array([order.index(target) + 1 if target in order else np.inf for order, target in pairs])


def rating_task(work: Work) -> dict[str, Any]:
    """Base, Base+DA where attributes were added, IFT (the LLM alone) and Llama4Rec, over the asked users."""
    active = activity(work.splits.rating.train, work.tables.num_users)
    test = asked_rating_rows(work.run.config, work.splits.rating.test)
    asked = rating_users(work.run.config, test, active.count_U)
    for name, kind in BACKBONES:
        if has_backbone(work.run, kind, "rating"):
            predicted_N = predict_ratings(open_backbone(work.run, kind, "rating"), test.user_N, test.item_N)
            add_rating(work.results, asked, name, predicted_N, test.rating_N)
    chosen = {method.name: rating_method(work, method, active) for method in methods(work.run.config)}
    return {**chosen[LLAMA4REC.name], "methods": chosen}


def rating_method(work: Work, method: Method, active: Activity) -> dict[str, Any]:
    """Choose the weights on validation, measure on test."""
    if method.weight == "alone":
        rated, _ = rated_part(work, method, "test", active)
        alphas, values, value = None, {}, None
        predicted_N = rated.values_N
    else:
        _, mixed = rated_part(work, method, "valid", active)
        target_N = asked_rating_rows(work.run.config, work.splits.rating.valid).rating_N
        values = {a: metrics.rmse(mixed(a), target_N) for a in work.grid(method)}
        alphas, value = best_alphas(values, largest=False)
        rated, mixed = rated_part(work, method, "test", active)
        predicted_N = mixed(alphas)
    rows = asked_rating_rows(work.run.config, work.splits.rating.test)
    asked = rating_users(work.run.config, rows, active.count_U)
    add_rating(work.results, asked, method.name, predicted_N, rows.rating_N)
    add_invalid(work.results, asked, method.name, rated.num_bad, rated.num_asked)
    chosen = {"metric": "RMSE", "validation": value}
    return chosen if alphas is None else {**chosen, **weights(alphas, values)}


def rated_part(
    work: Work, method: Method, part: Part, active: Activity
) -> tuple[Rated, Callable[[Alphas], np.ndarray]]:
    """The LLM's ratings, and their mixture with the backbone's (eq. 6) as a function of the weights."""
    rows = asked_rating_rows(work.run.config, getattr(work.splits.rating, part))
    base_N = predict_ratings(
        open_backbone(work.run, method.asking.backbone, "rating"), rows.user_N, rows.item_N
    )
    answers = work.select("rating", asked_as(method.asking, "rating"), part)
    rated = rated_answers(answers, rows, base_N, rating_scale(work.tables))

    def mixed(alphas: Alphas) -> np.ndarray:
        weight_N = active.weight(rows.user_N, alphas)
        return weight_N * rated.values_N + (1 - weight_N) * base_N

    return rated, mixed
