"""Stage evaluate: the backbone and every method on the same candidates (Tables 1 to 9 of the paper).

Shapes: N users asked, C candidates of a user.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recloom.data_shards.artifacts import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    read_manifest,
)
from recloom.data_shards.errors import UserError
from recloom.data_shards.scenarios import FULL
from recloom.trainer import metrics
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.evaluate import target_ranks
from recloom.trainer.collaborative.registry import load_backbone
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec.asked import Asked
from recloom.trainer.systems.a_llmrec.backbones import FOLDER, candidate_scores
from recloom.trainer.systems.a_llmrec.methods import Method, asked_methods
from recloom.trainer.systems.a_llmrec.prepare import Task, load_task, models_run
from recloom.trainer.systems.a_llmrec.project import out_folder
from recloom.trainer.systems.a_llmrec.rank import Line, all_asked, answers_path, read_lines
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig

BASE, CEILING = "Base", "Ceiling"
GREEDY = "greedy H@1"


class Results:
    """Collects measurements: one row a metric, and one row a user."""

    def __init__(self, config: ALLMRecConfig, task: Task) -> None:
        self.config, self.task = config, task
        self.count_U = [len(items) for items in task.train_sequences]
        self.rows: list[dict[str, Any]] = []
        self.per_user: list[dict[str, Any]] = []

    def add(self, asked: Asked, method: str, ranks_N: np.ndarray) -> None:
        """H@k and N@k in every reported scenario."""
        for k in self.config.evaluate.ks:
            self.add_metric(asked, method, f"H@{k}", metrics.hit_rate(ranks_N, k))
            if k > 1:
                self.add_metric(asked, method, f"N@{k}", metrics.ndcg(ranks_N, k))

    def add_metric(self, asked: Asked, method: str, metric: str, values_N: np.ndarray) -> None:
        for scenario, mask_N in asked.groups.items():
            if mask_N.any():
                place = self.place(scenario, method, metric)
                self.add_row(place, float(values_N[mask_N].mean()), int(mask_N.sum()))
                self.add_users(place, asked.rows.user_N[mask_N], values_N[mask_N])

    def add_row(self, place: dict[str, str], value: float, users: int) -> None:
        told = {"dataset": self.task.tables.name, "split": "test", "value": value, "users": users}
        told |= {"seed": self.config.seed, "protocol": self.protocol(place["scenario"])}
        self.rows.append({**place, **told})

    def add_users(self, place: dict[str, str], users_N: np.ndarray, values_N: np.ndarray) -> None:
        for user, value in zip(users_N.tolist(), values_N.tolist(), strict=True):
            told = {"user": user, "num_interactions": self.count_U[user], "value": float(value)}
            self.per_user.append({**place, **told})

    def place(self, scenario: str, method: str, metric: str) -> dict[str, str]:
        task = self.config.backbones.tasks[0]
        backbone = getattr(self.config.backbones, task).model
        return {"task": task, "scenario": scenario, "backbone": backbone, "method": method, "metric": metric}

    def protocol(self, scenario: str) -> str:
        settings = self.config.scenario
        if scenario.endswith(FULL):
            items, head = self.task.tables.num_items, settings.negatives + 1
            return f"full catalogue, {items:,} items, LLM re-ranks top {head}"
        return f"1 + {settings.negatives} candidates, drawn with seed {settings.seed}"


def run_evaluate(run: Run[ALLMRecConfig]) -> None:
    task = load_task(run)
    results = Results(run.config, task)
    for asked in all_asked(run, task):
        if run.config.scenario.trained is None:  # the backbone knows no item of another data set
            add_backbone(results, asked, load_backbone(run.path(FOLDER)))
        for method in asked_methods(run.config):
            add_method(run, results, asked, method)
    atomic_write_text(run.path("results.jsonl"), "".join(json.dumps(row) + "\n" for row in results.rows))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(results.per_user), buffer)
    atomic_write_bytes(run.path("per_user.parquet"), buffer.getvalue())
    atomic_write_json(run.path("times.json"), times(run, task))


def add_backbone(results: Results, asked: Asked, backbone: Backbone) -> None:
    """The backbone alone; of the whole catalogue its own ranking, and the share its head reaches."""
    users_N, histories = asked.rows.user_N, asked.histories(results.task)
    if not asked.suffix:
        results.add(asked, BASE, asked.ranks(candidate_scores(backbone, users_N, histories, asked.items_NC)))
        return
    targets_N = asked.rows.item_N.astype(np.int64)
    results.add(asked, BASE, target_ranks(backbone, users_N, histories, histories, targets_N))
    reached_N = (asked.items_NC == asked.rows.item_N[:, None]).any(axis=1)
    results.add_metric(asked, CEILING, f"H@{asked.items_NC.shape[1]}", reached_N.astype(np.float64))


def add_method(run: Run[ALLMRecConfig], results: Results, asked: Asked, method: Method) -> None:
    lines = read_lines(answers_path(run, method, asked))
    check_lines(lines, asked)
    results.add(asked, method.name, asked.ranks(line_scores(lines, asked)))
    answered_N = np.array([line.items[line.greedy] for line in lines])
    results.add_metric(asked, method.name, GREEDY, (answered_N == asked.rows.item_N).astype(np.float64))


def check_lines(lines: list[Line], asked: Asked) -> None:
    """Raises UserError for answers about other users or candidates."""
    users = asked.rows.user_N.tolist()
    if [(line.user, line.items) for line in lines] != [(u, asked.candidates(n)) for n, u in enumerate(users)]:
        raise UserError("rank: its answers are about other users or candidates: run it again (--from rank).")


def line_scores(lines: list[Line], asked: Asked) -> np.ndarray:
    """Log-probabilities of the answers (N, C), -inf where a list is shorter."""
    scores_NC = np.full(asked.items_NC.shape, -np.inf)
    for row, line in enumerate(lines):
        scores_NC[row, : len(line.logprobs)] = line.logprobs
    return scores_NC


def times(run: Run[ALLMRecConfig], task: Task) -> dict[str, Any]:
    """Seconds of training and of a question, by method (Table 8)."""
    asked = all_asked(run, task)[0]
    return {method.name: method_times(run, method, asked) for method in asked_methods(run.config)}


def method_times(run: Run[ALLMRecConfig], method: Method, asked: Asked) -> dict[str, Any]:
    """What was measured: a pass of vLLM tells no time of one question, another run's models no training."""
    seconds = [line.seconds for line in read_lines(answers_path(run, method, asked))]
    told: dict[str, Any] = {}
    if None not in seconds:
        told["question_seconds"] = float(np.mean(seconds))  # type: ignore[arg-type]
    if method.trained is None or models_run(run) is not run:
        return told
    folder = out_folder(run, method.trained)
    steps = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    told["training_seconds"] = sum(row["seconds"] for row in steps if "loss" in row)
    told["steps"] = read_manifest(folder / "model")["steps"]
    if method.trained == "a_llmrec":
        told["alignment_seconds"] = json.loads(run.path("stages/align.json").read_text())["seconds"]
    return told
