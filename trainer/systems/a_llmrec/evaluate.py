"""Stage evaluate: the backbone and every method on the same candidates (Tables 1 to 9 of the paper).

Shapes: N users asked, C candidates of a user.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from recloom.data_shards.artifacts import atomic_write_json, read_manifest
from recloom.data_shards.errors import UserError
from recloom.trainer import metrics
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.evaluate import target_ranks
from recloom.trainer.collaborative.registry import load_backbone
from recloom.trainer.results import AskedUsers, Results
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


def run_evaluate(run: Run[ALLMRecConfig]) -> None:
    task = load_task(run)
    results = Results(task.tables.name, run.config.seed)
    for asked in all_asked(run, task):
        users = asked_users(run.config, task, asked)
        if run.config.scenario.trained is None:  # the backbone knows no item of another data set
            backbone = load_backbone(run.path(FOLDER))
            results.add(users, BASE, measured(run.config, backbone_ranks(backbone, task, asked)))
            if asked.suffix:
                results.add(users, CEILING, ceiling(asked))
        for method in asked_methods(run.config):
            results.add(users, method.name, method_metrics(run, method, asked))
    results.write(run.folder)
    atomic_write_json(run.path("times.json"), times(run, task))


def asked_users(config: ALLMRecConfig, task: Task, asked: Asked) -> AskedUsers:
    settings, name = config.scenario, config.backbones.tasks[0]
    protocol = f"1 + {settings.negatives} candidates, drawn with seed {settings.seed}"
    if asked.suffix:
        items, head = task.tables.num_items, settings.negatives + 1
        protocol = f"full catalogue, {items:,} items, LLM re-ranks top {head}"
    count_U = np.array([len(items) for items in task.train_sequences])
    backbone = getattr(config.backbones, name).model
    return AskedUsers(name, backbone, protocol, asked.rows.user_N, count_U, asked.groups)


def measured(config: ALLMRecConfig, ranks_N: np.ndarray) -> dict[str, np.ndarray]:
    """H@k and N@k (N,); N@1 is H@1."""
    found = metrics.topk_metrics(ranks_N, config.evaluate.ks)
    return {name: values_N for name, values_N in found.items() if name != "N@1"}


def backbone_ranks(backbone: Backbone, task: Task, asked: Asked) -> np.ndarray:
    """Of the candidates, or of the whole catalogue by its own ranking."""
    users_N, histories = asked.rows.user_N, asked.histories(task)
    if not asked.suffix:
        return asked.ranks(candidate_scores(backbone, users_N, histories, asked.items_NC))
    return target_ranks(backbone, users_N, histories, histories, asked.rows.item_N.astype(np.int64))


def ceiling(asked: Asked) -> dict[str, np.ndarray]:
    """Which targets are in the backbone's head of the catalogue, which is all that is re-ranked."""
    reached_N = (asked.items_NC == asked.rows.item_N[:, None]).any(axis=1)
    return {f"H@{asked.items_NC.shape[1]}": reached_N.astype(np.float64)}


def method_metrics(run: Run[ALLMRecConfig], method: Method, asked: Asked) -> dict[str, np.ndarray]:
    lines = read_lines(answers_path(run, method, asked))
    check_lines(lines, asked)
    found = measured(run.config, asked.ranks(line_scores(lines, asked)))
    answered_N = np.array([line.items[line.greedy] for line in lines])
    return {**found, GREEDY: (answered_N == asked.rows.item_N).astype(np.float64)}


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
