"""Stage rank: the tuned LLM re-ranks the backbone's top k' and predicts ratings.

IFT re-ranks the base backbone's candidates with plain prompts, at test. Llama4Rec re-ranks the
augmented backbone's candidates with augmented prompts, at validation too, where alpha is chosen.
"""

from __future__ import annotations

import numpy as np

from recloom.data_shards.renderer import Renderer
from recloom.data_shards.splits import Splits
from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.evaluate import predict_ratings
from recloom.trainer.models import load_tokenizer
from recloom.trainer.requests import Request, read_answers
from recloom.trainer.stages import BulkPass, Run
from recloom.trainer.systems.llama4rec.backbones import open_backbone
from recloom.trainer.systems.llama4rec.prepare import load_data
from recloom.trainer.systems.llama4rec.prompts import Prompter, make_prompter
from recloom.trainer.systems.llama4rec.questions import (
    Part,
    asked_rating_rows,
    candidate_lists,
    known_disliked,
    known_rows,
    label_ids,
    listwise_request,
    rating_labels,
    rating_request,
)
from recloom.trainer.systems.llama4rec.tune import model_of, tuned_models

QUESTIONS: tuple[tuple[str, Part], ...] = (("ift", "test"), ("llama4rec", "valid"), ("llama4rec", "test"))


def passes(run: Run) -> list[BulkPass]:
    """One pass a tuned model."""
    tables, splits = load_data(run)
    made = []
    for name in tuned_models(run.config):
        model = run.path(f"tune/{name}/model")
        renderer = Renderer(load_tokenizer(str(model)))
        requests: list[Request] = []
        for method, part in QUESTIONS:
            if model_of(run.config, method) == name:
                requests += method_requests(run, tables, splits, method, part, renderer)
        made.append(BulkPass(f"rank_{name}", model, requests))
    return made


def method_requests(
    run: Run, tables: Tables, splits: Splits, method: str, part: Part, renderer: Renderer
) -> list[Request]:
    """All tasks' questions of one method at validation or test."""
    requests = []
    for task in run.config.backbones.tasks:
        ask = rating_requests if task == "rating" else topk_requests
        requests += ask(run, tables, splits, task, method, part, renderer)
    return requests


def method_prompter(run: Run, tables: Tables, splits: Splits, task: str, method: str, part: Part) -> Prompter:
    split = splits.rating if task == "rating" else splits.topk
    backbone = open_backbone(run, "augmented", task) if method == "llama4rec" else None
    disliked = None if task == "rating" else known_disliked(run.config, splits, part)
    known = known_rows(split, part)
    return make_prompter(
        run.config, tables.titles, tables.num_users, task, known, split.train, disliked, backbone
    )


def topk_requests(
    run: Run, tables: Tables, splits: Splits, task: str, method: str, part: Part, renderer: Renderer
) -> list[Request]:
    """One listwise question a user, candidates in the backbone's order."""
    backbone = open_backbone(run, "augmented" if method == "llama4rec" else "base", task)
    lists = candidate_lists(backbone, splits.topk, tables.num_users, part, run.config.rank.top_k)
    prompter = method_prompter(run, tables, splits, task, method, part)
    asked = lists.reachable_B if run.config.rank.reachable_only else np.ones(len(lists.users_B), dtype=bool)
    requests = []
    for user, items_k in zip(lists.users_B[asked], lists.items_Bk[asked], strict=True):
        items = [int(item) for item in items_k if item >= 0]
        sample = prompter.listwise(int(user), items, items, None)
        meta = {"task": task, "method": method, "part": part, "user": int(user)}
        requests.append(listwise_request(run.config, renderer, sample, first_only=False, **meta))
    return requests


def rating_requests(
    run: Run, tables: Tables, splits: Splits, task: str, method: str, part: Part, renderer: Renderer
) -> list[Request]:
    """One question a user about the rating of the held-out item."""
    config, split = run.config, splits.rating
    rows = asked_rating_rows(config, split.valid if part == "valid" else split.test)
    predictions = predict_ratings(open_backbone(run, "augmented", task), rows.user_N, rows.item_N)
    prompter = method_prompter(run, tables, splits, task, method, part)
    expected = config.rank.rating_rule == "expected"
    score_ids = label_ids(renderer, rating_labels(tables)) if expected else ()
    requests = []
    for user, item, prediction in zip(rows.user_N.tolist(), rows.item_N.tolist(), predictions, strict=True):
        sample = prompter.rating(user, item, float(prediction), None)
        meta = {"task": task, "method": method, "part": part, "user": user}
        requests.append(rating_request(renderer, sample, score_ids, **meta))
    return requests


def run_rank(run: Run) -> None:
    """The answers stay in bulk/rank_*; says how many there are."""
    for name in tuned_models(run.config):
        answers = read_answers(run.path(f"bulk/rank_{name}"))
        refused = sum(answer.error is not None for answer in answers)
        print(f"rank {name}: {len(answers)} answers, {refused} refused questions", flush=True)
