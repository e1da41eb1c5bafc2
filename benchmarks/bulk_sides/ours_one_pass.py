"""RecLoom's bulk engine with `scoring: one_pass`: a forward pass for all prompts that begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ours
import torch

from recloom.launcher.bulk_scoring import Scorer, beginning
from recloom.trainer.requests import Answer, Request


class Counting(Scorer):
    """Counts the tokens of its forward passes."""

    computed = 0

    def score(self, group: Sequence[Request]) -> dict[str, Answer]:
        common = beginning(group)
        self.computed += common + sum(len(request.prompt_ids) - common for request in group)
        return super().score(group)


def make(work: ours.Work, settings: ours.BulkSettings) -> Counting:
    torch.set_num_threads(work.threads)
    return Counting(Path(work.model), settings)


ours.measure(make)
