"""Stage genres: favourite genres in free text, with and without the vectors (section 5.4.4, Figure 4)."""

from __future__ import annotations

import json
from typing import Any

import torch
from tqdm import tqdm

from recloom.data_shards.artifacts import atomic_write_text
from recloom.data_shards.renderer import Renderer, SlotPosition
from recloom.data_shards.samples import sample_text
from recloom.data_shards.textualize import next_item
from recloom.data_shards.textualize.next_item import genres_sample
from recloom.data_shards.textualize.template import load_template
from recloom.trainer.loss import soft_inputs
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec.answerers import answerer, load_llm
from recloom.trainer.systems.a_llmrec.asked import asked_samples
from recloom.trainer.systems.a_llmrec.methods import METHODS, Method
from recloom.trainer.systems.a_llmrec.prepare import Task, load_task
from recloom.trainer.systems.a_llmrec.projection import ProjectedLM
from recloom.trainer.systems.a_llmrec.prompts import Question, Writer, make_renderer, make_writer
from recloom.trainer.systems.a_llmrec.rank import questions_of
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig


def run_genres(run: Run[ALLMRecConfig]) -> None:
    """One line a user and method in genres.jsonl; the LLM alone is asked in any case."""
    task, llm = load_task(run), load_llm(run, "sdpa")
    rows = []
    for method in (METHODS["llm_only"][0], METHODS["a_llmrec"][0]):
        rows += method_rows(run, task, method, llm)
    atomic_write_text(run.path("genres.jsonl"), "".join(json.dumps(row) + "\n" for row in rows))


def method_rows(run: Run[ALLMRecConfig], task: Task, method: Method, llm: Any) -> list[dict[str, Any]]:
    settings = run.config.genres
    assert settings is not None
    asked = asked_samples(task, run.config.scenario)
    questions = questions_of(task, asked)[: settings.users]
    users_N, histories = asked.rows.user_N[: settings.users], [question.history for question in questions]
    writer = make_writer(run, task.tables.titles, soft=method.vectors is not None)
    template = load_template(run.config.prompts.genres_template, next_item.GENRES)
    renderer = make_renderer(run)
    bar = tqdm(questions, desc=f"genres {method.name}", unit="user", disable=None)
    with answerer(run, task, method, llm, users_N, histories) as model:
        answers = [
            answered(model, writer, template, renderer, n, question, settings.max_tokens)
            for n, question in enumerate(bar)
        ]
    return [{"method": method.name, **answer} for answer in answers]


def answered(
    model: Any, writer: Writer, template: Any, renderer: Renderer, n: int, question: Question, max_tokens: int
) -> dict[str, Any]:
    """n: the row of the user's vector."""
    sample = genres_sample(template, writer.context(question, n), writer.options, writer.prompts.verb)
    ids, slots = renderer.render_slots(sample.prompt)
    new_ids = greedy_text(model, ids, slots, max_tokens, renderer)
    text = renderer.text(new_ids)
    return {"user": question.user, "prompt": sample_text(sample.prompt), "answer": text.strip()}


@torch.no_grad()
def greedy_text(
    model: Any, ids: list[int], slots: list[SlotPosition], max_tokens: int, renderer: Renderer
) -> list[int]:
    """The token ids that greedy decoding puts behind a prompt, up to the end token."""
    options = {"max_new_tokens": max_tokens, "do_sample": False, "pad_token_id": renderer.pad_id}
    input_ids = torch.tensor([ids], device=next(model.parameters()).device)
    if not isinstance(model, ProjectedLM):
        found = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), **options)
        return [int(token) for token in found[0, len(ids) :]]
    embedded_BTH = model.embed(input_ids, **soft_inputs(slots, len(ids), input_ids.device))
    mask_BT = torch.ones(embedded_BTH.shape[:2], dtype=torch.long, device=embedded_BTH.device)
    found = model.llm.generate(inputs_embeds=embedded_BTH, attention_mask=mask_BT, **options)  # type: ignore[operator]
    return [int(token) for token in found[0]]
