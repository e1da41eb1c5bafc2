"""Stages corpus and questions: rows of the tables as samples of the five families, in shards.

    corpus/FAMILY_train, corpus/FAMILY_valid   learned from, by the templates that are not held out
    asked/FAMILY_seen, asked/FAMILY_unseen     test rows; the answer is there for the evaluation only

Samples are made one by one, so a corpus of any size takes the memory of its row numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recloom.data_shards.candidates import sampled_candidates
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Sample
from recloom.data_shards.shards import write_shards
from recloom.data_shards.splits import Interactions, Splits
from recloom.data_shards.tables import Tables
from recloom.data_shards.textualize.behaviour import TaskOptions
from recloom.data_shards.textualize.next_item import cut_titles
from recloom.data_shards.textualize.template import one_line_titles
from recloom.data_shards.textualize.template_sets import (
    NamedTemplate,
    load_set,
    seen_templates,
    unseen_template,
)
from recloom.trainer.models import load_tokenizer, resolve_model
from recloom.trainer.preparation import load_data
from recloom.trainer.stages import Run
from recloom.trainer.systems.recsysllm.families import (
    WORK,
    Case,
    World,
    asked_world,
    feedable,
    item_attributes,
    stored_list,
    training_candidates,
)
from recloom.trainer.systems.recsysllm.settings import FAMILIES, CorpusBlock, FamilyName, RecSysLLMConfig

Prompt = Literal["seen", "unseen"]
SAMPLES_PER_SHARD = 5000
TRAIN, VALID, TEST = 60, 61, 62  # one stream of draws each


def make_world(run: Run[RecSysLLMConfig]) -> World:
    """The prepared data as the config shows them."""
    tables, splits = load_data(run)
    corpus = run.config.corpus
    positive = run.config.positive_rating
    options = TaskOptions(
        titles=cut_titles(one_line_titles(tables.titles), corpus.title_words),
        noun=corpus.item_noun,
        verb=corpus.verb,
        **scale(tables),
        **({} if positive is None else {"positive_rating": positive}),
        details=item_attributes(tables, corpus.details),
        review_words=corpus.review_words,
    )
    return World(tables, splits, splits, options, corpus)


def scale(tables: Tables) -> dict[str, float]:
    """Lowest and highest rating; nothing where there are none."""
    if not tables.has_ratings:
        return {}
    rating_N = tables.interactions["rating"].to_numpy()
    return {"lowest": float(rating_N.min()), "highest": float(rating_N.max())}


def families_of(config: RecSysLLMConfig, tables: Tables) -> tuple[FamilyName, ...]:
    """The families of a run. Raises UserError for one that the data cannot feed."""
    able = feedable(tables)
    asked = config.corpus.families
    lacking = [name for name in asked or () if name not in able]
    if lacking:
        raise UserError(
            f"corpus.families: {lacking[0]} needs ratings, reviews or summaries that {tables.name} does not "
            f"have: choose from {', '.join(able)}."
        )
    return tuple(name for name in FAMILIES if name in (asked or able))


def make_renderer(run: Run[RecSysLLMConfig]) -> Renderer:
    return Renderer(load_tokenizer(resolve_model(run.config.model.path, run.cache)), start=True)


def run_corpus(run: Run[RecSysLLMConfig]) -> None:
    """Write the samples to learn from and those of the validation loss, family by family."""
    world, renderer, config = make_world(run), make_renderer(run), run.config.corpus
    for family in families_of(run.config, world.tables):
        templates = seen_templates(load_set(config.templates, WORK[family].family))
        makers: dict[str, Iterator[Sample]] = {"train": training_samples(world, family, templates)}
        if config.valid_samples:
            makers["valid"] = validation_samples(world, family, templates)
        for part, samples in makers.items():
            write_part(samples, renderer, run.path(f"corpus/{family}_{part}"), family=family, part=part)


def write_part(samples: Iterator[Sample], renderer: Renderer, folder: Path, **fields: Any) -> None:
    manifest = write_shards(once_each(samples), renderer, folder, SAMPLES_PER_SHARD, **fields)
    lengths = np.load(folder / "lengths.npy")[:, 0]
    print(
        f"{folder.parent.name} {folder.name}: {manifest['num_samples']:,} samples, {lengths.mean():.0f} "
        f"tokens each, longest {lengths.max():,}",
        flush=True,
    )


def once_each(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Samples that read the same have one key and are written once."""
    keys: set[str] = set()
    for sample in samples:
        if sample.key not in keys:
            keys.add(sample.key)
            yield sample


def training_samples(
    world: World, family: FamilyName, templates: Sequence[NamedTemplate]
) -> Iterator[Sample]:
    """A sample of each drawn training row, by a template drawn for it."""
    rows = world.split(family).train
    negatives = Negatives(world)
    number = FAMILIES.index(family)
    made = (
        make_training_sample(world, family, templates, rows, place, negatives)
        for place in drawn_order(len(rows), [world.corpus.seed, TRAIN, number]).tolist()
    )
    return islice((sample for sample in made if sample is not None), world.corpus.samples)


def make_training_sample(
    world: World,
    family: FamilyName,
    templates: Sequence[NamedTemplate],
    rows: Interactions,
    place: int,
    negatives: Negatives,
) -> Sample | None:
    order = int(rows.order_N[place])
    rng = np.random.default_rng([world.corpus.seed, TRAIN, FAMILIES.index(family), order])
    template = templates[int(rng.integers(len(templates)))]
    case = case_of(rows, place)
    if family == "direct":
        case = Case(case.user, case.item, case.rating, order, negatives.of(case, rng))
    return WORK[family].make(world, template, case, rng)


def validation_samples(
    world: World, family: FamilyName, templates: Sequence[NamedTemplate]
) -> Iterator[Sample]:
    """Samples of validation rows, by the templates in turn; of ratings as they are, as in P5."""
    world = replace(world, corpus=world.corpus.model_copy(update={"jitter": False}))
    rows = world.split(family).valid
    negatives, number = Negatives(world), FAMILIES.index(family)
    made = (
        make_training_sample(world, family, [templates[n % len(templates)]], rows, place, negatives)
        for n, place in enumerate(drawn_order(len(rows), [world.corpus.seed, VALID, number]).tolist())
    )
    return islice((sample for sample in made if sample is not None), world.corpus.valid_samples)


class Negatives:
    """Candidate lists for direct prompts to learn from."""

    def __init__(self, world: World) -> None:
        self._own = world.splits.topk.train.sequences(world.tables.num_users)
        self._num_items, self._count = world.tables.num_items, world.corpus.negatives

    def of(self, case: Case, rng: np.random.Generator) -> list[int]:
        return training_candidates(self._own[case.user], case.item, self._num_items, self._count, rng)


def run_questions(run: Run[RecSysLLMConfig]) -> None:
    """Write the test rows as questions: by the first prompt trained on, and by the one held out."""
    world, renderer = asked_world(make_world(run)), make_renderer(run)
    for family in families_of(run.config, world.tables):
        for prompt in run.config.ask.prompts:
            template = question_template(run.config.corpus, family, prompt)
            samples = question_samples(run, world, family, template)
            write_part(samples, renderer, run.path(f"asked/{family}_{prompt}"), family=family, prompt=prompt)


def question_template(corpus: CorpusBlock, family: FamilyName, prompt: Prompt) -> NamedTemplate:
    """Raises UserError where a user's set has no such template."""
    templates = load_set(corpus.templates, WORK[family].family)
    seen = [named for named in seen_templates(templates) if named.form == WORK[family].form]
    found = (
        seen[0] if prompt == "seen" and seen else unseen_template(templates) if prompt == "unseen" else None
    )
    if found is None or found.form != WORK[family].form:
        raise UserError(
            f"corpus.templates = '{corpus.templates}': {family} has no {prompt} template whose answer is of "
            f"the form {WORK[family].form}: add one, or take {prompt} out of ask.prompts."
        )
    return found


def question_samples(
    run: Run[RecSysLLMConfig], world: World, family: FamilyName, template: NamedTemplate
) -> Iterator[Sample]:
    """The drawn test rows; a larger sample holds the smaller, and all prompts ask the same."""
    rows = world.split(family).test
    lists = direct_lists(run, world.splits, world.tables.num_items).of(rows) if family == "direct" else None
    rng = np.random.default_rng([world.corpus.seed, TEST])
    number = FAMILIES.index(family)
    made = (
        WORK[family].make(
            world, template, case_of(rows, place, stored_list(lists, place) if lists else []), rng
        )
        for place in drawn_order(len(rows), [world.corpus.seed, TEST, number]).tolist()
    )
    return islice((sample for sample in made if sample is not None), run.config.ask.users)


def direct_lists(run: Run[RecSysLLMConfig], splits: Splits, num_items: int) -> Any:
    """The stored candidates of the test users: one target among 99 that the user never touched."""
    corpus = run.config.corpus
    return sampled_candidates(splits, "test", num_items, corpus.negatives, corpus.seed)


def case_of(rows: Interactions, place: int, candidates: list[int] | None = None) -> Case:
    return Case(
        int(rows.user_N[place]),
        int(rows.item_N[place]),
        float(rows.rating_N[place]),
        int(rows.order_N[place]),
        candidates or [],
    )


def drawn_order(count: int, seed: list[int]) -> np.ndarray:
    """Row numbers in a seeded order."""
    return np.random.default_rng(seed).permutation(count)
