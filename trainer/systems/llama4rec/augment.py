"""Stage augment: the tuned LLM makes training data for the conventional models (section 4.2).

Direct: pairs of un-interacted items that the LLM ranks (4.2.1). Sequential: the item that the LLM
picks out of k un-interacted ones (4.2.2). Un-interacted is judged by the training part alone. The
backbone's own prediction is left out of these prompts: the LLM would only hand it back.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from recloom.data_shards.artifacts import atomic_write_text
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.splits import Splits
from recloom.data_shards.tables import Tables
from recloom.data_shards.textualize.listwise import parse_listwise
from recloom.trainer.models import load_tokenizer
from recloom.trainer.requests import REQUESTS, Answer, Request, read_answers, read_requests
from recloom.trainer.stages import BulkPass, Run
from recloom.trainer.systems.llama4rec.backbones import open_backbone
from recloom.trainer.systems.llama4rec.prepare import load_data
from recloom.trainer.systems.llama4rec.prompts import Prompter, make_prompter
from recloom.trainer.systems.llama4rec.questions import known_disliked, listwise_request

TASK_NUMBER = {"direct": 21, "sequential": 22}


def augmented_tasks(run: Run) -> list[str]:
    return [task for task in run.config.backbones.tasks if task in TASK_NUMBER]


def passes(run: Run) -> list[BulkPass]:
    tables, splits = load_data(run)
    model = run.path("tune/llama4rec/model")
    renderer = Renderer(load_tokenizer(str(model)))
    requests = [
        r for task in augmented_tasks(run) for r in task_requests(run, tables, splits, task, renderer)
    ]
    return [BulkPass("augment", model, requests)]


def task_requests(run: Run, tables: Tables, splits: Splits, task: str, renderer: Renderer) -> list[Request]:
    config, split = run.config, splits.topk
    backbone = open_backbone(run, "base", task)
    disliked = known_disliked(config, splits, "valid")
    prompter = make_prompter(
        config, tables.titles, tables.num_users, task, split.train, split.train, disliked, backbone
    )
    repeats, count = (
        (config.augment.direct_pairs, 2)
        if task == "direct"
        else (config.augment.sequential_items, config.augment.sequential_candidates)
    )
    rng = np.random.default_rng([config.seed, TASK_NUMBER[task]])
    sequences = split.train.sequences(tables.num_users)
    users = rng.permutation(np.flatnonzero([len(items) > 0 for items in sequences]))
    requests = []
    for user in users[: config.augment.users]:
        free = np.setdiff1d(np.arange(tables.num_items), sequences[user])
        for _ in range(repeats if len(free) >= count else 0):
            requests.append(
                question(run, prompter, renderer, task, int(user), rng.choice(free, count, replace=False))
            )
    return requests


def question(
    run: Run, prompter: Prompter, renderer: Renderer, task: str, user: int, candidates: np.ndarray
) -> Request:
    sample = prompter.without_prediction().listwise(user, candidates.tolist(), [], None)
    return listwise_request(run.config, renderer, sample, first_only=True, task=task, user=user)


def run_augment(run: Run) -> None:
    """Turn the answers into audit records; one that names no candidate is kept with `chosen` null."""
    run.path("augment").mkdir(parents=True, exist_ok=True)  # stays empty where no task is augmented
    tables, _ = load_data(run)
    tokenizer = load_tokenizer(str(run.path("tune/llama4rec/model")))
    folder = run.path("bulk/augment")
    asked = {request.key: list(request.prompt_ids) for request in read_requests(folder / REQUESTS)}
    answers = read_answers(folder)
    for task in augmented_tasks(run):
        records = [
            record(answer, tokenizer.decode(asked[answer.key]), tables.titles)
            for answer in answers
            if answer.meta["task"] == task
        ]
        lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in records]
        atomic_write_text(run.path(f"augment/{task}.jsonl"), "".join(lines))
        used = sum(row["chosen"] is not None for row in records)
        print(f"augment {task}: {len(records)} answers, {used} name a candidate", flush=True)


def record(answer: Answer, prompt: str, titles: list[str]) -> dict[str, Any]:
    parsed = parse_listwise(answer.text, answer.meta["candidates"], titles)
    return {
        "user": answer.meta["user"],
        "candidates": answer.meta["candidates"],
        "chosen": parsed.order[0] if parsed.order else None,
        "answer": answer.text,
        "logprob": answer.logprob,
        "finish_reason": answer.finish_reason,
        "error": answer.error,
        "prompt": prompt,
    }
