"""Stage rank: every method scores the candidates of the asked users; one line a user, resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recloom.data_shards.artifacts import fsync_path
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.textualize.next_item import quoted
from recloom.trainer.candidate_scoring import score_answers
from recloom.trainer.collaborative.registry import load_backbone
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec.answerers import answerer, load_llm
from recloom.trainer.systems.a_llmrec.asked import Asked, asked_full, asked_samples
from recloom.trainer.systems.a_llmrec.backbones import FOLDER
from recloom.trainer.systems.a_llmrec.methods import Method, asked_methods
from recloom.trainer.systems.a_llmrec.prepare import Task, load_task
from recloom.trainer.systems.a_llmrec.prompts import Question, Writer, make_renderer, make_writer
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig
from recloom.trainer.tree_attention import TREE

FLUSH_EVERY = 16


@dataclass(frozen=True)
class Line:
    """A method's answer about one user: candidates as shown, log-probability of each title, greedy's choice.

    seconds: of this question alone; None where many were asked at once.
    """

    user: int
    items: list[int]
    logprobs: list[float]
    greedy: int
    seconds: float | None


def all_asked(run: Run[ALLMRecConfig], task: Task) -> list[Asked]:
    """The sampled candidates, and the head of the whole catalogue where the config wants it."""
    settings = run.config.scenario
    found = [asked_samples(task, settings)]
    if settings.full_catalogue:
        found.append(asked_full(task, settings, load_backbone(run.path(FOLDER))))
    return found


def run_rank(run: Run[ALLMRecConfig]) -> None:
    """Ask with Hugging Face in this process."""
    task = load_task(run)
    llm = cache(partial(load_llm, run, TREE))  # loaded once, and not where every answer is there
    for method in asked_methods(run.config):
        for asked in all_asked(run, task):
            lines = ask(run, task, method, asked, llm)
            seconds = sum(line.seconds or 0 for line in lines) / max(1, len(lines))
            print(f"rank {method.name}{asked.suffix}: {len(lines)} users, {seconds:.2f} s each", flush=True)


def answers_path(run: Run[ALLMRecConfig], method: Method, asked: Asked) -> Path:
    return run.path(f"rank/{method.key}{asked.suffix}.jsonl")


def questions_of(task: Task, asked: Asked) -> list[Question]:
    """One question a row."""
    histories = asked.histories(task)
    users = asked.rows.user_N.tolist()
    return [Question(user, histories[n], asked.candidates(n), None) for n, user in enumerate(users)]


def ask(
    run: Run[ALLMRecConfig], task: Task, method: Method, asked: Asked, llm: Callable[[], Any]
) -> list[Line]:
    """Ask about the users that the file does not hold yet; the file's whole lines are kept."""
    path = answers_path(run, method, asked)
    done = keep_whole_lines(path)
    questions = questions_of(task, asked)
    if len(done) == len(questions):
        return done
    histories = [question.history for question in questions]
    writer = make_writer(run, task.tables.titles, soft=method.vectors is not None)
    with (
        answerer(run, task, method, llm(), asked.rows.user_N, histories) as model,
        open(path, "a") as file,
    ):
        lines = scored(model, writer, make_renderer(run), questions, first=len(done))
        told: dict[str, Any] = {"desc": method.name, "unit": "user", "initial": len(done)}
        for line in tqdm(lines, total=len(questions), disable=None, **told):
            done.append(line)
            file.write(json.dumps(asdict(line)) + "\n")
            if len(done) % FLUSH_EVERY == 0:
                file.flush()
    fsync_path(path)
    return done


def scored(
    model: Any, writer: Writer, renderer: Renderer, questions: list[Question], first: int
) -> Iterator[Line]:
    """A line for each question from `first` on; a question's number is the row of its user's vector."""
    for n, question in list(enumerate(questions))[first:]:
        start = time.perf_counter()
        prompt, slots = renderer.render_slots(writer.sample(question, n).prompt)
        answers = title_answers(writer, renderer, question)
        found = score_answers(model, prompt, answers, slots if writer.is_soft else None)
        yield Line(
            question.user,
            question.candidates,
            found.totals_K.tolist(),
            found.greedy(),
            round(time.perf_counter() - start, 4),
        )


def title_answers(writer: Writer, renderer: Renderer, question: Question) -> list[list[int]]:
    """The token ids of each candidate's quoted title, end token included."""
    titles = writer.options.titles
    return [[*renderer.answer_ids(quoted(titles[item])), renderer.eos_id] for item in question.candidates]


def keep_whole_lines(path: Path) -> list[Line]:
    """The lines of an interrupted start; a torn last one is cut off the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    with open(path, "r+b") as file:
        file.truncate(len(whole) + 1 if whole else 0)
    return read_lines(path)


def read_lines(path: Path) -> list[Line]:
    return [Line(**json.loads(text)) for text in path.read_text().splitlines()]
