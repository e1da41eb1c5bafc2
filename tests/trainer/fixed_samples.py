"""A small fixed corpus of token ids, the same in every process."""

from __future__ import annotations

import numpy as np

from recloom.data_shards.renderer import SlotPosition
from recloom.trainer.config import TrainingBlock


class FixedSamples:
    """Random ids with lengths 10 to 60; the last 5 to 9 tokens are the answer."""

    def __init__(self, count: int = 60) -> None:
        rng = np.random.default_rng(7)
        self.lengths_N = rng.integers(10, 60, count).astype(np.int32)
        self.num_prompt_N = (self.lengths_N - rng.integers(5, 10, count)).astype(np.int32)
        self._ids = [rng.integers(3, 49000, length).astype(np.int32) for length in self.lengths_N]

    has_slots = False

    def ids(self, index: int) -> np.ndarray:
        return self._ids[index]

    def slots(self, index: int) -> list[SlotPosition]:
        return []


class SmallVocabulary(FixedSamples):
    """The same for models of few words; the last step of an epoch has an empty row."""

    def __init__(self) -> None:
        super().__init__(32)
        self._ids = [3 + ids % 496 for ids in self._ids]


def training_block() -> TrainingBlock:
    return TrainingBlock(
        epochs=2,
        learning_rate=1e-3,
        warmup_steps=3,
        weight_decay=0.01,
        gradient_clipping=0.5,
        pack_length=128,
        context=128,
        rows_per_step=4,
        window=16,
    )
