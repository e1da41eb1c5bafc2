"""Stage rank: the tuned LLM re-ranks the backbone's top k' and predicts ratings.

What is asked follows from the compared methods (`methods.py`): IFT re-ranks the base backbone's
candidates with plain prompts, Llama4Rec the augmented backbone's with augmented prompts. Listwise, one
question orders a user's candidates; pointwise, one question a candidate predicts its rating.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recloom.data_shards.renderer import Renderer
from recloom.data_shards.splits import Splits
from recloom.data_shards.tables import Tables
from recloom.trainer.collaborative.evaluate import predict_ratings
from recloom.trainer.models import load_tokenizer
from recloom.trainer.preparation import load_data
from recloom.trainer.requests import Request, read_answers
from recloom.trainer.stages import BulkPass, Run
from recloom.trainer.systems.llama4rec.backbones import open_backbone, task_split
from recloom.trainer.systems.llama4rec.methods import Asking, Part, askings, distinct
from recloom.trainer.systems.llama4rec.prompts import Prompter, make_prompter
from recloom.trainer.systems.llama4rec.questions import (
    CandidateLists,
    asked_rating_rows,
    candidate_lists,
    known_disliked,
    known_rows,
    listwise_request,
)
from recloom.trainer.systems.llama4rec.rating_tokens import (
    LabelTree,
    label_tree,
    rating_labels,
    rating_requests,
)
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig
from recloom.trainer.systems.llama4rec.tune import model_folder, model_of, tuned_models


@dataclass(frozen=True)
class Asker:
    """What all questions of one model share; tree: None when ratings are read as text."""

    run: Run[Llama4RecConfig]
    tables: Tables
    splits: Splits
    renderer: Renderer
    tree: LabelTree | None

    def prompter(self, task: str, asking: Asking, part: Part) -> Prompter:
        """Prompts as one way of asking wants them, with everything before `part` as history."""
        config, split = self.run.config, task_split(self.splits, task)
        backbone = open_backbone(self.run, asking.backbone, task) if asking.prompts == "augmented" else None
        disliked = None if task == "rating" else known_disliked(config, self.splits, part)
        known, titles = known_rows(split, part), self.tables.titles
        return make_prompter(
            config, titles, self.tables.num_users, task, known, split.train, disliked, backbone
        )


def passes(run: Run[Llama4RecConfig]) -> list[BulkPass]:
    """One pass a tuned model."""
    tables, splits = load_data(run)
    made = []
    for name in tuned_models(run.config):
        model = model_folder(run, name)
        renderer = Renderer(load_tokenizer(str(model)))
        requests = list(
            model_requests(Asker(run, tables, splits, renderer, tree_of(run, tables, renderer)), name)
        )
        made.append(BulkPass(f"rank_{name}", model, requests))
    return made


def tree_of(run: Run[Llama4RecConfig], tables: Tables, renderer: Renderer) -> LabelTree | None:
    """The labels to ask for, None where no rating is asked or ratings are read as text."""
    if run.config.backbones.rating is None or run.config.rank.rating_rule == "integer":
        return None
    return label_tree(renderer, rating_labels(tables))


def model_requests(asker: Asker, model: str) -> Iterator[Request]:
    """All tasks' questions to one tuned model."""
    config = asker.run.config
    pairs = [(asking, part) for asking, parts in askings(config).items() for part in parts]
    for task in config.backbones.tasks:
        for asking, part in distinct(pairs, task):
            if model_of(config, asking.model) != model:
                continue
            meta = {"task": task, "backbone": asking.backbone, "prompts": asking.prompts, "part": part}
            if task == "rating":
                yield from held_out_ratings(asker, asking, part, meta)
                continue
            lists = asked_lists(asker, task, asking, part)
            if config.rank.ranking != "pointwise":
                yield from listwise(asker, task, asking, part, lists, {**meta, "form": "listwise"})
            if config.rank.ranking != "listwise":
                yield from pointwise(asker, asking, lists, {**meta, "form": "pointwise"})


def asked_lists(asker: Asker, task: str, asking: Asking, part: Part) -> CandidateLists:
    """The candidates of every user that is asked about."""
    rank, splits = asker.run.config.rank, asker.splits
    backbone = open_backbone(asker.run, asking.backbone, task)
    lists = candidate_lists(backbone, splits.topk, asker.tables.num_users, part, rank.top_k)
    return lists.select(lists.reachable_B) if rank.reachable_only else lists


def listwise(
    asker: Asker, task: str, asking: Asking, part: Part, lists: CandidateLists, meta: dict[str, str]
) -> Iterator[Request]:
    """One question a user, candidates in the backbone's order."""
    prompter = asker.prompter(task, asking, part)
    for user, items in lists.rows():
        sample = prompter.listwise(user, items, items, None)
        titles = prompter.options.titles
        yield listwise_request(asker.run.config, asker.renderer, sample, titles, False, user=user, **meta)


def pointwise(asker: Asker, asking: Asking, lists: CandidateLists, meta: dict[str, str]) -> Iterator[Request]:
    """One rating question a candidate.

    The histories are of rating's training rows at validation and at test: its validation row may be a
    top-k test target.
    """
    prompter = asker.prompter("rating", asking, "valid")
    backbone = open_backbone(asker.run, asking.backbone, "rating")
    for user, items in lists.rows():
        predictions = predict_ratings(backbone, np.full(len(items), user), np.array(items))
        for item, prediction in zip(items, predictions.tolist(), strict=True):
            sample = prompter.rating(user, item, prediction, None)
            yield from rating_requests(asker.renderer, sample, asker.tree, user=user, **meta)


def held_out_ratings(asker: Asker, asking: Asking, part: Part, meta: dict[str, str]) -> Iterator[Request]:
    """One question a user about the rating of the held-out item."""
    rows = asked_rating_rows(asker.run.config, getattr(asker.splits.rating, part))
    backbone = open_backbone(asker.run, asking.backbone, "rating")
    predictions = predict_ratings(backbone, rows.user_N, rows.item_N)
    prompter = asker.prompter("rating", asking, part)
    for user, item, prediction in zip(
        rows.user_N.tolist(), rows.item_N.tolist(), predictions.tolist(), strict=True
    ):
        sample = prompter.rating(user, item, prediction, None)
        yield from rating_requests(asker.renderer, sample, asker.tree, user=user, **meta)


def run_rank(run: Run[Llama4RecConfig]) -> None:
    """The answers stay in bulk/rank_*; says how many there are."""
    for name in tuned_models(run.config):
        answers = read_answers(run.path(f"bulk/rank_{name}"))
        refused = sum(answer.error is not None for answer in answers)
        print(f"rank {name}: {len(answers)} answers, {refused} refused questions", flush=True)
