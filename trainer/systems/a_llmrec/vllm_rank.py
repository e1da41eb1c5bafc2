"""Stage rank with vLLM: one bulk pass a method, prompts with projected rows, answers held to the candidates.

Two questions a user: beams as wide as the candidate list give every title's log-probability, and greedy
decoding its own choice. Shapes: N users asked, I items, H width of the LLM.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from recloom.data_shards.artifacts import atomic_write_bytes, atomic_write_text, file_sha256
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer, SlotPosition
from recloom.data_shards.textualize.next_item import quoted
from recloom.kernels.trie_build import trie_of
from recloom.trainer.models import local_model
from recloom.trainer.requests import Answer, Catalogue, Request, SoftPrompt, read_answers
from recloom.trainer.stages import BulkPass, Run
from recloom.trainer.systems.a_llmrec.answerers import model_folder
from recloom.trainer.systems.a_llmrec.asked import Asked
from recloom.trainer.systems.a_llmrec.methods import Method, asked_methods
from recloom.trainer.systems.a_llmrec.prepare import Task, load_task
from recloom.trainer.systems.a_llmrec.projection import Projection, load_projection
from recloom.trainer.systems.a_llmrec.prompts import Question, make_renderer, make_writer, shown_titles
from recloom.trainer.systems.a_llmrec.rank import (
    Line,
    all_asked,
    answers_path,
    questions_of,
    title_answers,
)
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig
from recloom.trainer.systems.a_llmrec.vectors import soft_tables

PARTS = ("beams", "greedy")


def passes(run: Run[ALLMRecConfig]) -> list[BulkPass]:
    """One pass a method and candidate set."""
    task, renderer = load_task(run), make_renderer(run)
    model = local_model(run.config.model.path, run.cache)
    trie = write_trie(run, task, renderer)
    return [
        BulkPass(pass_name(method, asked), model, list(requests_of(run, task, renderer, trie, method, asked)))
        for method in asked_methods(run.config)
        for asked in all_asked(run, task)
    ]


def pass_name(method: Method, asked: Asked) -> str:
    return f"rank_{method.key}{asked.suffix}"


def write_trie(run: Run[ALLMRecConfig], task: Task, renderer: Renderer) -> Path:
    """The catalogue's quoted titles, end token behind each."""
    titles = shown_titles(run.config.prompts, task.tables.titles)
    path = run.path("rank/titles.trie")
    path.parent.mkdir(parents=True, exist_ok=True)
    sequences = [renderer.answer_ids(quoted(title)) for title in titles]
    trie_of(sequences, end_token=renderer.eos_id, vocab_size=renderer.vocab_size).save(path)
    return path


def requests_of(
    run: Run[ALLMRecConfig], task: Task, renderer: Renderer, trie: Path, method: Method, asked: Asked
) -> Iterator[Request]:
    writer = make_writer(run, task.tables.titles, soft=method.vectors is not None)
    questions = questions_of(task, asked)
    rows_file = write_rows(run, task, method, asked, questions) if writer.is_soft else None
    sha256 = file_sha256(rows_file) if rows_file else ""
    for n, question in enumerate(questions):
        prompt, slots = renderer.render_slots(writer.sample(question, n).prompt)
        soft = None if rows_file is None else soft_prompt(rows_file, sha256, slots, len(questions))
        longest = max(map(len, title_answers(writer, renderer, question)))
        allowed = tuple(sorted(question.candidates))
        for part in PARTS:
            beams = len(question.candidates) if part == "beams" else 1
            yield Request(
                tuple(prompt),
                max_tokens=longest,
                meta={"user": question.user, "part": part},
                catalogue=Catalogue(str(trie), allowed, (), beams),
                soft=soft,
            )


def write_rows(
    run: Run[ALLMRecConfig], task: Task, method: Method, asked: Asked, questions: list[Question]
) -> Path:
    """The projected rows (N + I, H): the users asked, then the catalogue. The pass checks H."""
    assert method.vectors is not None
    histories = [question.history for question in questions]
    tables = soft_tables(run, task, method.vectors, asked.rows.user_N, histories)
    projection = load_projection(model_folder(run, method))
    path = run.path(f"rank/{method.key}{asked.suffix}.safetensors")
    atomic_write_bytes(
        path, safetensors.torch.save({"rows": project(projection, tables.users_ND, tables.items_IE)})
    )
    return path


@torch.no_grad()
def project(projection: Projection, users_ND: Tensor, items_IE: Tensor) -> Tensor:
    """Rows of the users and of the items; a network that was not trained gives zeros, which nothing reads."""
    found = []
    for network, vectors_NX in ((projection.user, users_ND), (projection.item, items_IE)):
        empty = torch.zeros(len(vectors_NX), projection.widths.tokens)
        found.append(empty if network is None else network(vectors_NX))
    return torch.cat(found)


def soft_prompt(path: Path, sha256: str, slots: list[SlotPosition], num_users: int) -> SoftPrompt:
    """Slots are numbered by user row and item; items lie behind the users in the file."""
    positions = tuple(position for position, _, _ in slots)
    rows = tuple(int(id or 0) + (0 if kind == "user" else num_users) for _, kind, id in slots)
    return SoftPrompt(str(path), sha256, positions, rows)


def run_vllm_rank(run: Run[ALLMRecConfig]) -> None:
    """Write the passes' answers as the lines that `evaluate` reads."""
    task = load_task(run)
    titles = shown_titles(run.config.prompts, task.tables.titles)
    for method in asked_methods(run.config):
        for asked in all_asked(run, task):
            answers = read_answers(run.path(f"bulk/{pass_name(method, asked)}"))
            lines = [
                line_of(q, answers[2 * n : 2 * n + 2], titles)
                for n, q in enumerate(questions_of(task, asked))
            ]
            text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
            atomic_write_text(answers_path(run, method, asked), text)
            print(f"rank {method.name}{asked.suffix}: {len(lines)} users", flush=True)


def line_of(question: Question, pair: list[Answer], titles: Sequence[str]) -> Line:
    """Both answers about a user. Items that share a title share its log-probability."""
    beams, greedy = pair
    for answer in pair:
        if answer.error is not None or not answer.items:
            raise UserError(
                f"rank: user {question.user}: no answer ({answer.error or 'no item'}): run it again."
            )
    scores = {titles[item]: score for item, score in zip(beams.items, beams.scores, strict=True)}
    named = [titles[item] for item in question.candidates]
    chosen = named.index(titles[greedy.items[0]])
    return Line(question.user, question.candidates, [scores[title] for title in named], chosen, None)
