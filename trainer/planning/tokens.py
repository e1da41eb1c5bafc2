"""How long the prompts of a training get and how many fit a step, before any prompt is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recloom.data_shards.packing import pack_window
from recloom.trainer.config import TrainingBlock

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


def make_corpus(
    name: str,
    num_prompts: int,
    full: Sequence[int],
    answer_tokens: float,
    training: TrainingBlock,
    longest: float = LONGEST,
) -> Corpus:
    """full: tokens of a full prompt with its answer, one a kind; the kinds come in equal numbers.

    answer_tokens: of an answer, over all kinds. longest: the longest prompt over the estimate.
    """
    per_step = training.rows_per_step * samples_per_row(full, training.pack_length, training.window)
    return Corpus(
        name=name,
        num_prompts=num_prompts,
        mean_tokens=float(np.mean(full)),
        longest_tokens=int(longest * max(full)),
        answer_share=answer_tokens / float(np.mean(full)),
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
