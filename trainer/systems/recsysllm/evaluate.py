"""Stage evaluate: every family by its own metrics, by prompts that were trained on and by the one held out.

A method's row with * is of the unseen prompt, as in the paper's tables; "free" is without the trie.

Shapes: N questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recloom.data_shards.splits import Interactions
from recloom.data_shards.textualize.direct_task import parse_title
from recloom.trainer import metrics, text_metrics
from recloom.trainer.report.results import INVALID
from recloom.trainer.results import AskedUsers, Results, everyone
from recloom.trainer.stages import Run
from recloom.trainer.systems.recsysllm.baselines import ranks_of, ratings_of
from recloom.trainer.systems.recsysllm.corpus import Prompt, families_of, make_world
from recloom.trainer.systems.recsysllm.families import World
from recloom.trainer.systems.recsysllm.generate import ITEM_FAMILIES, open_questions, read_answers
from recloom.trainer.systems.recsysllm.methods import asked_methods
from recloom.trainer.systems.recsysllm.settings import FamilyName, RecSysLLMConfig

BASE = "Base"
UNSEEN = " *"
FREE = ", free"
BACKBONE_TASKS: dict[FamilyName, str] = {"sequential": "sequential", "direct": "direct", "rating": "rating"}

Answer = Mapping[str, Any]


def run_evaluate(run: Run[RecSysLLMConfig]) -> None:
    """Read all answers, write results.jsonl and per_user.parquet."""
    world, config = make_world(run), run.config
    results = Results(world.tables.name, config.seed)
    for family in families_of(config, world.tables):
        prompts = config.ask.prompts
        metas = read_metas(run, family, prompts[0])
        asked = asked_rows(config, world, family, metas)
        add_backbone(run, results, asked, family, metas)
        for method in asked_methods(config):
            if family not in method.of((family,)):
                continue
            for prompt in prompts:
                name = method.name + (UNSEEN if prompt == "unseen" else "")
                add_answers(config, world, results, asked, name, read_answers(run, method, family, prompt))
    results.write(run.folder)


def read_metas(run: Run[RecSysLLMConfig], family: FamilyName, prompt: Prompt) -> list[dict[str, Any]]:
    """What the questions are about, the same by all prompts."""
    reader = open_questions(run, family, prompt)
    return [reader.record(index)["meta"] for index in range(len(reader))]


def asked_rows(
    config: RecSysLLMConfig, world: World, family: FamilyName, metas: Sequence[Answer]
) -> AskedUsers:
    train: Interactions = world.split(family).train
    task = BACKBONE_TASKS.get(family, "")
    backbone = getattr(config.backbones, task).model if task and getattr(config.backbones, task) else ""
    return AskedUsers(
        family,
        backbone,
        protocol(config, world, family),
        np.array([meta["user"] for meta in metas]),
        np.bincount(train.user_N, minlength=world.tables.num_users),
        everyone(len(metas)),
    )


def protocol(config: RecSysLLMConfig, world: World, family: FamilyName) -> str:
    """How targets are asked for, in words."""
    if family == "sequential":
        return f"full catalogue, {world.tables.num_items:,} items, {config.ask.beams} beams"
    if family == "direct":
        return f"1 target among {config.corpus.negatives} items that the user never touched"
    return "one test row a user, greedy answers"


def add_backbone(
    run: Run[RecSysLLMConfig],
    results: Results,
    asked: AskedUsers,
    family: FamilyName,
    metas: Sequence[Answer],
) -> None:
    """The conventional recommender, where the config names one for the task."""
    if not asked.backbone:
        return
    if family == "rating":
        add_ratings(results, asked, BASE, ratings_of(run, metas), true_ratings(metas))
        return
    ranks_N = ranks_of(run, BACKBONE_TASKS[family], metas, among=family == "direct")
    results.add(asked, BASE, metrics.one_target_metrics(ranks_N, run.config.evaluate.ks))


def add_answers(
    config: RecSysLLMConfig,
    world: World,
    results: Results,
    asked: AskedUsers,
    name: str,
    answers: Sequence[Answer],
) -> None:
    """A method's answers by the metrics of the family."""
    if asked.task == "rating":
        add_rating_answers(world, results, asked, name, answers)
    elif asked.task in ITEM_FAMILIES:
        ranks_N = np.array([place_of(answer["answer"], answer["ranked"]) for answer in answers])
        results.add(asked, name, metrics.one_target_metrics(ranks_N, config.evaluate.ks))
        if config.ask.free:
            add_free(world, results, asked, name + FREE, answers)
    else:
        add_texts(results, asked, name, answers)


def place_of(target: int, ranked: Sequence[int]) -> float:
    """1-based, inf where the search did not find it."""
    return ranked.index(target) + 1.0 if target in ranked else np.inf


def true_ratings(metas: Sequence[Answer]) -> np.ndarray:
    return np.array([float(meta["answer"]) for meta in metas])


def add_rating_answers(
    world: World, results: Results, asked: AskedUsers, name: str, answers: Sequence[Answer]
) -> None:
    """An answer that is no rating counts as the training mean, and as invalid."""
    mean = float(world.splits.rating.train.rating_N.mean())
    scale = (world.options.lowest, world.options.highest)
    read = text_metrics.written_ratings([answer["text"] for answer in answers], scale, mean)
    add_ratings(results, asked, name, read.rating_N, true_ratings(answers))
    results.add_row(asked, name, INVALID, float(read.unreadable_N.mean()), len(answers))


def add_ratings(
    results: Results, asked: AskedUsers, name: str, predicted_N: np.ndarray, true_N: np.ndarray
) -> None:
    errors_N = metrics.rating_errors(predicted_N, true_N)
    results.add_row(asked, name, "RMSE", metrics.rmse(predicted_N, true_N), len(true_N))
    results.add_mean(asked, name, "MAE", np.abs(errors_N))
    results.add_users(asked, name, "AE", np.abs(errors_N))
    results.add_users(asked, name, "SE", errors_N**2)


def add_free(world: World, results: Results, asked: AskedUsers, name: str, answers: Sequence[Answer]) -> None:
    """One answer without the trie: a hit where it is the target's title; invalid where it is no item's."""
    titles = world.options.titles
    everything = range(len(titles))
    found = [parse_title(answer["text"], answer["items"] or everything, titles) for answer in answers]
    hits_N = np.array([float(item == answer["answer"]) for item, answer in zip(found, answers, strict=True)])
    results.add(asked, name, {"H@1": hits_N})
    results.add_row(asked, name, INVALID, sum(item is None for item in found) / len(found), len(found))


def add_texts(results: Results, asked: AskedUsers, name: str, answers: Sequence[Answer]) -> None:
    """BLEU of all answers together, ROUGE as the mean over answers, in percent."""
    texts = [answer["text"] for answer in answers]
    references = [str(answer["answer"]) for answer in answers]
    for order in (2, 4):
        results.add_row(asked, name, f"BLEU-{order}", text_metrics.bleu(texts, references, order), len(texts))
    results.add(asked, name, text_metrics.rouge_scores(texts, references))
    invalid = sum(not text.strip() for text in texts) / len(texts)
    results.add_row(asked, name, INVALID, invalid, len(texts))
