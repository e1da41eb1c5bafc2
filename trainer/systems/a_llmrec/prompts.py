"""Stage prompts: the questions of stage 2 as shards, with soft tokens and as text (Figures 3 and 5).

Shapes: N questions, D width of the recommender.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from recloom.data_shards.artifacts import MANIFEST, atomic_write_bytes, read_manifest, write_manifest
from recloom.data_shards.candidates import NO_ITEM
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Sample
from recloom.data_shards.shards import write_shards
from recloom.data_shards.textualize import next_item
from recloom.data_shards.textualize.next_item import NextItemContext, cut_titles, next_item_sample
from recloom.data_shards.textualize.template import Template, TextOptions, load_template, one_line_titles
from recloom.trainer.collaborative.evaluate import user_vectors
from recloom.trainer.collaborative.registry import load_backbone
from recloom.trainer.collaborative.tasks import NegativeSampler
from recloom.trainer.models import load_tokenizer, resolve_model
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec.backbones import FOLDER
from recloom.trainer.systems.a_llmrec.methods import projected
from recloom.trainer.systems.a_llmrec.prepare import Task, load_task
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig, PromptsBlock

CorpusName: TypeAlias = Literal["soft", "text"]
STATES, STATES_FILE = "prompts/soft/states", "user_states.safetensors"
USERS_NUMBER, NEGATIVES_NUMBER, VALIDATION_NUMBER = 31, 32, 33  # one stream of draws each
SAMPLES_PER_SHARD = 2000


@dataclass(frozen=True)
class Question:
    """What a prompt is about; the history is whole, oldest first. answer: None at inference."""

    user: int
    history: np.ndarray
    candidates: list[int]
    answer: int | None


@dataclass(frozen=True)
class Writer:
    """Writes questions in words, with or without soft tokens."""

    prompts: PromptsBlock
    template: Template
    options: TextOptions
    user_vector: bool
    soft_items: bool

    @property
    def is_soft(self) -> bool:
        return self.user_vector or self.soft_items

    def sample(self, question: Question, user_row: int) -> Sample:
        """user_row: where the user's state lies among those kept beside the prompts."""
        context = self.context(question, user_row)
        sample = next_item_sample(self.template, context, self.options, self.prompts.verb)
        return replace(sample, key=f"{sample.key}-{user_row}")  # two draws may ask the very same

    def context(self, question: Question, user_row: int) -> NextItemContext:
        return NextItemContext(
            user=question.user,
            history=[int(item) for item in question.history[-self.prompts.history_items :]],
            candidates=question.candidates,
            user_row=user_row if self.user_vector else None,
            soft_items=self.prompts.soft_token if self.soft_items else None,
            answer=question.answer,
        )


def make_renderer(run: Run[ALLMRecConfig]) -> Renderer:
    """With a start token before the user's vector, as the paper's OPT has it."""
    return Renderer(load_tokenizer(resolve_model(run.config.model.path, run.cache)), start=True)


def make_writer(run: Run[ALLMRecConfig], titles: list[str], soft: bool) -> Writer:
    config = run.config
    prompts, project = config.prompts, config.project
    return Writer(
        prompts,
        load_template(prompts.template, next_item.FAMILY),
        TextOptions(shown_titles(prompts, titles), prompts.item_noun),
        user_vector=soft and project.user_vector,
        soft_items=soft and project.item_vectors != "none",
    )


def shown_titles(prompts: PromptsBlock, titles: list[str]) -> list[str]:
    return cut_titles(one_line_titles(titles), prompts.title_words)


def corpora(config: ALLMRecConfig) -> list[CorpusName]:
    """The corpora that the methods need: with soft tokens, and of text alone."""
    soft: list[CorpusName] = ["soft"] if projected(config) else []
    return [*soft, "text"] if "tallrec" in config.methods else soft


def run_prompts(run: Run[ALLMRecConfig], name: CorpusName) -> None:
    """Write one corpus; beside soft tokens also one user state a question: x_u behind the history."""
    config, task = run.config, load_task(run)
    train = list(training_questions(config, task))
    if not train:
        raise UserError("prompts: no user has two training items: use more data.")
    valid = validation_questions(config, task)
    if name == "soft":
        write_states(run, task, [*train, *valid])
    renderer = make_renderer(run)
    writer = make_writer(run, task.tables.titles, name == "soft")
    for part, found, first in (("train", train, 0), ("valid", valid, len(train))):
        if found:
            samples = (writer.sample(question, first + n) for n, question in enumerate(found))
            folder = run.path(f"prompts/{name}/{part}")
            manifest = write_shards(samples, renderer, folder, SAMPLES_PER_SHARD, corpus=name, part=part)
            tokens = manifest["num_tokens"] / manifest["num_samples"]
            print(f"prompts {name}/{part}: {len(found)} prompts, {tokens:.0f} tokens each", flush=True)


def write_states(run: Run[ALLMRecConfig], task: Task, questions: list[Question]) -> None:
    """States of the questions, and which items are cold: all that ranks need of the data set."""
    backbone = load_backbone(run.path(FOLDER))
    states_ND = user_vectors(backbone, np.array([q.user for q in questions]), [q.history for q in questions])
    save_states(run, states_ND, task.cold_I)


def save_states(run: Run[ALLMRecConfig], states_ND: Tensor, cold_I: np.ndarray) -> None:
    folder = run.path(STATES)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    tensors = {"states": states_ND, "cold": torch.from_numpy(cold_I)}
    atomic_write_bytes(folder / STATES_FILE, safetensors.torch.save(tensors))
    write_manifest(folder)


def load_states(run: Run[ALLMRecConfig]) -> Tensor:
    """The user states (N, D) of the training and then the validation questions."""
    return read_states(run)["states"]


def load_cold(run: Run[ALLMRecConfig]) -> np.ndarray:
    """Which items (I,) had no training interaction."""
    cold_I: np.ndarray = read_states(run)["cold"].numpy()
    return cold_I


def read_states(run: Run[ALLMRecConfig]) -> dict[str, Tensor]:
    """Raises UserError for a folder that is incomplete or damaged."""
    read_manifest(run.path(STATES), verify=True)
    return safetensors.torch.load_file(run.path(STATES) / STATES_FILE)


def training_questions(config: ALLMRecConfig, task: Task) -> Iterator[Question]:
    """`draws` questions a target: the last training item of a user, or all but the first."""
    sequences, settings = task.train_sequences, config.project
    count = settings.negatives or config.scenario.negatives
    users = np.flatnonzero([len(items) > 1 for items in sequences])
    order = np.random.default_rng([config.seed, USERS_NUMBER]).permutation(users)
    sampler = NegativeSampler(sequences, task.tables.num_items)
    for user in np.sort(order[: settings.users]).tolist():
        items = sequences[user]
        rng = np.random.default_rng([config.seed, NEGATIVES_NUMBER, user])
        first = 1 if settings.targets == "all" else len(items) - 1
        for place in range(first, len(items)):
            for _ in range(settings.draws):
                others = distinct_negatives(sampler, user, count, rng)
                shown = rng.permutation([items[place], *others]).tolist()
                yield Question(user, items[:place], shown, int(items[place]))


def distinct_negatives(
    sampler: NegativeSampler, user: int, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Different items outside the user's training items, as many as there are up to `count`."""
    free = int(sampler.num_items - sampler.size_U[user])
    found = np.empty(0, dtype=np.int64)
    while len(found) < min(count, free):
        drawn = np.concatenate([found, sampler.sample(np.full(2 * count, user), rng)])
        found = drawn[np.sort(np.unique(drawn, return_index=True)[1])][:count]
    return found


def validation_questions(config: ALLMRecConfig, task: Task) -> list[Question]:
    """A sample of the validation rows with their stored candidates."""
    rows, lists = task.scenario.splits.topk.valid, task.scenario.valid
    assert lists is not None
    order = np.random.default_rng([config.seed, VALIDATION_NUMBER]).permutation(len(rows))
    return [
        Question(
            int(rows.user_N[row]),
            task.train_sequences[rows.user_N[row]],
            listed(lists.items_NC[row]),
            int(rows.item_N[row]),
        )
        for row in np.sort(order[: config.project.validation])
        if len(task.train_sequences[rows.user_N[row]])
    ]


def listed(items_C: np.ndarray) -> list[int]:
    """A candidate list without its filling."""
    return [int(item) for item in items_C if item != NO_ITEM]
