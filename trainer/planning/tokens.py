"""How long prompts get and how many fit a step, before any prompt is written.

An estimate: a title line of MovieLens has about 12 tokens (12.5 with LLaMA-2's tokenizer, 11.6 with
SmolLM2's), a title with its rating about 15; titles of other data sets may be longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recloom.data_shards.packing import pack_window
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig, PromptsBlock

TITLE, RATED_TITLE = 12, 15
WORDS = {False: 20, True: 30}  # headings; the prompt augmentations have their own
SPREAD = 0.08  # standard deviation of a prompt's length around the estimate, as a share
LONGEST = 1.25  # the longest prompt over the estimate
NUM_DRAWN = 2048


@dataclass(frozen=True)
class Corpus:
    """The prompts one model is tuned on, and what comes of them."""

    name: str
    num_prompts: int
    mean_tokens: float
    longest_tokens: int
    answer_share: float
    prompts_per_step: float
    steps_per_epoch: int


def prompt_tokens(prompts: PromptsBlock, rating: bool, augmented: bool) -> int:
    """Tokens of a full prompt with its answer."""
    similar = prompts.similar_items if augmented and prompts.similar_user else 0
    if rating:
        return RATED_TITLE * (prompts.history_items + similar + 1) + WORDS[augmented]
    predicted = prompts.prediction_items if augmented and prompts.backbone_prediction else 0
    shown = prompts.history_items + prompts.disliked_items + prompts.candidates + similar + predicted
    return TITLE * (shown + prompts.answer_items) + WORDS[augmented]


def answer_tokens(prompts: PromptsBlock) -> int:
    """Tokens of a listwise answer, end token included."""
    return (TITLE + 1) * prompts.answer_items


def corpora(config: Llama4RecConfig) -> list[Corpus]:
    """One corpus a tuned model; the shared model sees plain and augmented prompts in equal parts."""
    if config.training.ift == "shared":
        return [corpus(config, "llama4rec", (True, False))]
    return [corpus(config, "llama4rec", (True,)), corpus(config, "ift", (False,))]


def corpus(config: Llama4RecConfig, name: str, kinds: Sequence[bool]) -> Corpus:
    """Ranking and rating prompts in equal numbers, each plain, augmented or both."""
    training = config.training
    ratings = sorted({task == "rating" for task in config.backbones.tasks})
    full = [prompt_tokens(config.prompts, rating, kind) for rating in ratings for kind in kinds]
    per_step = training.rows_per_step * samples_per_row(full, training.pack_length, training.window)
    num_prompts = config.instructions.per_task * len(ratings)
    answers = answer_tokens(config.prompts) * ratings.count(False) / len(ratings)
    return Corpus(
        name=name,
        num_prompts=num_prompts,
        mean_tokens=float(np.mean(full)),
        longest_tokens=int(LONGEST * max(full)),
        answer_share=answers / float(np.mean(full)),
        prompts_per_step=per_step,
        steps_per_epoch=int(np.ceil(num_prompts / per_step)),
    )


def samples_per_row(full: Sequence[int], pack_length: int, window: int) -> float:
    """Packs drawn lengths as the stream would; an average would miss that two halves must fit a row."""
    rng = np.random.default_rng(0)
    spread_N = rng.normal(1.0, SPREAD, NUM_DRAWN).clip(2 - LONGEST, LONGEST)
    lengths_N = np.round(rng.choice(full, NUM_DRAWN) * spread_N).astype(int)
    windows = [lengths_N[start : start + window] for start in range(0, NUM_DRAWN, window)]
    return NUM_DRAWN / sum(len(pack_window(lengths, pack_length)) for lengths in windows)
