"""Laser for the plan: how long its texts get, how many there are, what is trained beside the LLM.

An estimate in SmolLM2's tokens: an item's line has about 65 in Amazon's Industrial and Scientific of 2018
(its title 32), 43 in Beauty of 2014, which has no brands, and 14 in MovieLens; two a word where they are
cut. What M-Former itself keeps for the backward pass is left out: at the paper's size below 20 MB a user.
"""

from __future__ import annotations

import math
import sys

from recloom.data_shards.textualize import browsing
from recloom.trainer.planning.cluster import gib
from recloom.trainer.planning.memory import SmallParts
from recloom.trainer.planning.outline import Asking, Outline, Training
from recloom.trainer.planning.shapes import ModelSize
from recloom.trainer.planning.tokens import Corpus, make_corpus
from recloom.trainer.planning.users import HELD_OUT, DataSize, data_size, recommender_width
from recloom.trainer.systems.laser.methods import Method, asked_methods, stage_numbers, trained_methods
from recloom.trainer.systems.laser.mformer import MFormerSettings
from recloom.trainer.systems.laser.settings import LaserConfig, StageBlock
from recloom.trainer.systems.laser.training import stage_settings

MOVIELENS_TITLE, TITLE, VALUE = 9, 30, 12
NUMBER, NAME, WORD = 5, 3, 2  # an item's number and line end; `brand: `; a word of what is cut
INSTRUCTION = 40
LONGEST = 1.25  # the longest text over that of a full history


def outline(config: LaserConfig, model: ModelSize | None) -> Outline:
    data = data_size(config)
    trainings = tuple(make_trainings(config, model, data))
    names = config.texts.template, config.texts.item_template
    templates = dict.fromkeys(name for name in names if name is not None)
    return Outline(
        templates=tuple((name, browsing.FAMILY) for name in templates),
        named_templates=len(templates),
        trainings=trainings,
        untrained=None if trainings else untrained(config),
        asking=Asking(config.rank.engine, longest_text(config), "the stage rank"),
        lines=(*data_lines(config, data), *item_lines(config, model, data)),
        shortened_by="texts.history_items",
    )


def untrained(config: LaserConfig) -> str:
    return f"the models of {config.bitune.start_from} answer"


def make_trainings(config: LaserConfig, model: ModelSize | None, data: DataSize) -> list[Training]:
    """Both stages, each with the methods that go through it."""
    found = []
    for stage in (1, 2):
        methods = [
            method
            for method in trained_methods(config)
            if stage in stage_numbers(config, method) and stage_settings(config, method, stage).epochs
        ]
        if methods:
            settings = as_read(config, config.stage_1 if stage == 1 else config.stage_2, data)
            corpora = tuple(make_texts(config, f"{method.key}_{stage}", settings, data) for method in methods)
            small = trained_parts(config, methods, model, data) if model else None
            found.append(Training(f"stage_{stage}", settings, corpora, small))
    return found


def added(config: LaserConfig) -> int:
    """Positions that prefix and suffix add to a text; a packed row is filled with the text alone."""
    has_prefix = any(method.prefix != "none" for method in asked_methods(config))
    return config.bitune.mformer.tokens * has_prefix + 1


def as_read(config: LaserConfig, settings: StageBlock, data: DataSize) -> StageBlock:
    """With rows as long as the LLM reads them."""
    text = text_tokens(config, data)
    grown = math.ceil(settings.pack_length * (1 + added(config) / text))
    return settings if settings.pack_length < text else settings.model_copy(update={"pack_length": grown})


def make_texts(config: LaserConfig, name: str, settings: StageBlock, data: DataSize) -> Corpus:
    """Of an epoch: one text a user, or one a training item but the first, or a sample of these; no answer
    follows."""
    users = learned_users(config, data)
    each = 1.0 if config.learn.targets == "last" else data.length - HELD_OUT
    texts = min(int(users * each), config.learn.samples or sys.maxsize, settings.epoch_samples or sys.maxsize)
    mean = text_tokens(config, data) + added(config)
    longest = longest_text(config) / mean
    return make_corpus(name, max(1, texts), [mean], 0, settings, longest)


def learned_users(config: LaserConfig, data: DataSize) -> int:
    users = math.ceil(config.learn.share * data.users)
    return users if config.learn.users is None else min(users, config.learn.users)


def text_tokens(config: LaserConfig, data: DataSize) -> int:
    """Tokens of a usual text: all targets of a user have half as long histories as the last."""
    history = data.length - HELD_OUT
    history = history / 2 if config.learn.targets == "all" else history
    shown = min(max(history, 1.0), config.texts.history_items)
    return INSTRUCTION + round(shown * line_tokens(config))


def longest_text(config: LaserConfig) -> int:
    """As the LLM reads it."""
    return int(LONGEST * (INSTRUCTION + config.texts.history_items * line_tokens(config))) + added(config)


def line_tokens(config: LaserConfig) -> int:
    """Tokens of an item's line."""
    texts = config.texts
    title = MOVIELENS_TITLE if config.data.source == "movielens" else TITLE
    title = title if texts.title_words is None else min(title, WORD * texts.title_words)
    value = VALUE if texts.attribute_words is None else min(VALUE, WORD * texts.attribute_words)
    return NUMBER + title + num_attributes(config) * (NAME + value)


def num_attributes(config: LaserConfig) -> int:
    """Those that the YAML names, else brand and category as far as a source has them."""
    if config.texts.attributes is not None:
        return len(config.texts.attributes)
    if config.data.source == "table":
        items = config.data.items
        return len({"brand", "category"} & set(items.attributes if items else ()))
    return 2 if config.data.source.startswith("amazon") else 0


def trained_parts(config: LaserConfig, methods: list[Method], model: ModelSize, data: DataSize) -> SmallParts:
    """Those of the method that trains most, and the items' vectors."""
    parts = [method_parts(config, method, model) for method in methods]
    most = max(parts, key=lambda part: part.parameters)
    return SmallParts(most.parameters, most.largest, constants=matrix_bytes(model, data))


def method_parts(config: LaserConfig, method: Method, model: ModelSize) -> SmallParts:
    settings, width = config.bitune.mformer, model.hidden
    suffix = width if method.pooling == "suffix" else 0
    if method.prefix == "none":
        return SmallParts(suffix, width)
    if method.prefix == "free":
        return SmallParts(settings.tokens * width + suffix, settings.tokens * width)
    experts = settings.experts if method.moe else 1
    parts = mformer_parts(settings.model_copy(update={"experts": experts}), recommender_width(config), width)
    return SmallParts(parts.parameters + suffix, parts.largest)


def mformer_parts(settings: MFormerSettings, recommender: int, width: int) -> SmallParts:
    """Router, experts, last norm and projection; blocks, of which each second one reads the history."""
    hidden, blocks, experts = settings.hidden, settings.blocks, settings.experts
    square = hidden * (hidden + 1)
    block = 4 * square + 4 * hidden + 2 * 4 * hidden**2 + 5 * hidden
    reading = 2 * square + 2 * hidden * (recommender + 1) + 2 * hidden
    tokens = experts * settings.tokens * hidden
    ends = experts * recommender + tokens + 2 * hidden + width * (hidden + 1)
    total = blocks * block + -(-blocks // 2) * reading + ends
    return SmallParts(total, max(4 * hidden**2, hidden * width, tokens))


def matrix_bytes(model: ModelSize, data: DataSize) -> float:
    """The items' vectors in float32, which every rank has whole."""
    return 4.0 * data.items * model.hidden


def data_lines(config: LaserConfig, data: DataSize) -> list[tuple[str, str]]:
    """From whom is learned."""
    learned = learned_users(config, data)
    limits = [("learn.share", config.learn.share < 1), ("learn.users", learned == config.learn.users)]
    origins = [name for name, is_limit in limits if is_limit] or [data.origin]
    return [("users", f"{learned:,} to learn from: {' and '.join(origins)}")]


def item_lines(config: LaserConfig, model: ModelSize | None, data: DataSize) -> list[tuple[str, str]]:
    """What the catalogue costs beside the users' texts."""
    tokens = INSTRUCTION + line_tokens(config) + added(config)
    passes = config.stage_1.epochs or 1
    text = f"{data.items:,} texts of about {tokens} tokens, read {passes} times a method (no gradient)"
    if model is not None:
        text += f"; {gib(matrix_bytes(model, data))} of vectors on every rank"
    return [("items", text)]
