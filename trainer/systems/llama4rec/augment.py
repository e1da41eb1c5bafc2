"""Stage augment: the tuned LLM makes training data for the conventional models (section 4.2).

Direct: pairs of un-interacted items that the LLM ranks (4.2.1). Sequential: the item that the LLM
picks out of k un-interacted ones (4.2.2). Rating: attributes of items by in-context learning (4.2.3).
Un-interacted is judged by the training part alone. The backbone's own prediction is left out of these
prompts: the LLM would only hand it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recloom.data_shards.artifacts import atomic_write_text
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.splits import Splits
from recloom.data_shards.tables import Tables
from recloom.data_shards.textualize import attributes
from recloom.data_shards.textualize.listwise import parse_listwise
from recloom.data_shards.textualize.template import TextOptions, load_template, one_line_titles
from recloom.trainer.models import load_tokenizer
from recloom.trainer.preparation import load_data
from recloom.trainer.requests import REQUESTS, Answer, Request, read_answers, read_requests
from recloom.trainer.stages import BulkPass, Run
from recloom.trainer.systems.llama4rec.augmented_data import augmented_tasks
from recloom.trainer.systems.llama4rec.backbones import open_backbone
from recloom.trainer.systems.llama4rec.prompts import Prompter, make_prompter
from recloom.trainer.systems.llama4rec.questions import known_disliked, listwise_request
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig
from recloom.trainer.systems.llama4rec.tune import model_folder

TASK_NUMBER = {"direct": 21, "sequential": 22}


def passes(run: Run[Llama4RecConfig]) -> list[BulkPass]:
    if run.config.augment.reuse is not None:
        return []
    tables, splits = load_data(run)
    model = model_folder(run, "llama4rec")
    renderer = Renderer(load_tokenizer(str(model)))
    requests: list[Request] = []
    for task in augmented_tasks(run.config):
        if task == "rating":
            requests += attribute_requests(run, tables, splits, renderer)
        else:
            requests += task_requests(run, tables, splits, task, renderer)
    return [BulkPass("augment", model, requests)]


def task_requests(
    run: Run[Llama4RecConfig], tables: Tables, splits: Splits, task: str, renderer: Renderer
) -> list[Request]:
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
    run: Run[Llama4RecConfig],
    prompter: Prompter,
    renderer: Renderer,
    task: str,
    user: int,
    candidates: np.ndarray,
) -> Request:
    sample = prompter.without_prediction().listwise(user, candidates.tolist(), [], None)
    titles = prompter.options.titles
    return listwise_request(run.config, renderer, sample, titles, True, task=task, user=user)


def attribute_requests(
    run: Run[Llama4RecConfig], tables: Tables, splits: Splits, renderer: Renderer
) -> Iterator[Request]:
    """One question an item, the items with the most training ratings first."""
    config, asked = run.config, run.config.augment.attributes
    assert asked is not None
    template = load_template(config.prompts.attributes_template, attributes.FAMILY)
    options = TextOptions(one_line_titles(tables.titles), config.prompts.item_noun)
    count_I = np.bincount(splits.rating.train.item_N, minlength=tables.num_items)
    for item in np.argsort(-count_I, kind="stable")[: asked.items].tolist():
        context = attributes.AttributesContext(item, asked.names, asked.examples)
        prompt = attributes.attributes_sample(template, context, options).prompt
        yield Request(
            tuple(renderer.render_prompt(prompt)),
            asked.max_tokens,
            stop=("\nTitle:",),
            meta={"task": "rating", "item": item},
        )


def run_augment(run: Run[Llama4RecConfig]) -> None:
    """Turn the answers into audit records; an answer of no use is kept, see `usable`."""
    run.path("augment").mkdir(parents=True, exist_ok=True)  # stays empty where no task is augmented
    run.path("bulk/augment").mkdir(parents=True, exist_ok=True)
    if run.config.augment.reuse is not None:
        return reuse_records(run, Path(run.config.augment.reuse).expanduser())
    tables, _ = load_data(run)
    tokenizer = load_tokenizer(str(model_folder(run, "llama4rec")))
    folder = run.path("bulk/augment")
    asked = {request.key: list(request.prompt_ids) for request in read_requests(folder / REQUESTS)}
    answers = read_answers(folder)
    for task in augmented_tasks(run.config):
        records = [
            record(run, answer, tokenizer.decode(asked[answer.key]), tables.titles)
            for answer in answers
            if answer.meta["task"] == task
        ]
        lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in records]
        atomic_write_text(run.path(f"augment/{task}.jsonl"), "".join(lines))
        used = sum(usable(row) for row in records)
        print(f"augment {task}: {len(records)} answers, {used} of use", flush=True)


def reuse_records(run: Run[Llama4RecConfig], other: Path) -> None:
    """Take the records of a finished run; they name users and items by number, so the data must be equal."""
    for name in ("data/tables/manifest.json", *(f"augment/{t}.jsonl" for t in augmented_tasks(run.config))):
        if not (other / name).is_file():
            raise UserError(f"augment.reuse = '{other}': it has no {name}: name a run with these tasks.")
    tables, theirs = load_data(run)[0], Tables.load(other / "data/tables")
    if not (tables.interactions.equals(theirs.interactions) and tables.items.equals(theirs.items)):
        raise UserError(f"augment.reuse = '{other}': it was made on other data: name a run on the same.")
    for task in augmented_tasks(run.config):
        atomic_write_text(run.path(f"augment/{task}.jsonl"), (other / f"augment/{task}.jsonl").read_text())
        print(f"augment {task}: the records of {other}", flush=True)


def usable(row: dict[str, Any]) -> bool:
    """Whether the answer names a candidate, or an attribute."""
    return row.get("chosen") is not None or bool(row.get("attributes"))


def record(run: Run[Llama4RecConfig], answer: Answer, prompt: str, titles: list[str]) -> dict[str, Any]:
    """What was asked, answered and understood: `chosen` or `attributes`, null where nothing was."""
    kept = {
        "answer": answer.text,
        "logprob": answer.logprob,
        "finish_reason": answer.finish_reason,
        "error": answer.error,
        "prompt": prompt,
    }
    meta = answer.meta
    if meta["task"] == "rating":
        assert run.config.augment.attributes is not None
        found = attributes.parse_attributes(answer.text, run.config.augment.attributes.names)
        return {"item": meta["item"], "title": titles[meta["item"]], "attributes": found, **kept}
    order = parse_listwise(answer.text, meta["candidates"], titles).order
    chosen = order[0] if order else None
    return {"user": meta["user"], "candidates": meta["candidates"], "chosen": chosen, **kept}
