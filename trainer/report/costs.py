"""Seconds of training and of a question by method (Table 8 of A-LLMRec)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recloom.trainer.report.results import QUESTION_SECONDS, TRAINING_MINUTES, Value, place
from recloom.trainer.report.system_view import SystemView

REFERENCE = "TALLRec"


@dataclass(frozen=True)
class Cost:
    """Seconds; None: nothing of the kind is trained, or questions were asked many at once.

    Attributes:
        alignment: stage 1. tuning: stage 2, or the tuning of the LLM. question: one user's candidates.
        training_share, question_share: of what REFERENCE takes; None where either is missing.
    """

    method: str
    alignment: float | None
    tuning: float | None
    question: float | None
    training_share: float | None
    question_share: float | None

    @property
    def training(self) -> float | None:
        return training_seconds(self.alignment, self.tuning)


def training_seconds(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def method_training(told: Mapping[str, Any]) -> float | None:
    return training_seconds(told.get("alignment_seconds"), told.get("training_seconds"))


def share(seconds: float | None, reference: float | None) -> float | None:
    return seconds / reference if seconds is not None and reference else None


def costs(times: Mapping[str, Any], view: SystemView) -> list[Cost]:
    """The methods of times.json in the order of the tables."""
    reference = times.get(REFERENCE, {})
    order = tuple(view.methods)
    return [
        Cost(
            method,
            told.get("alignment_seconds"),
            told.get("training_seconds"),
            told.get("question_seconds"),
            share(method_training(told), method_training(reference)),
            share(told.get("question_seconds"), reference.get("question_seconds")),
        )
        for method, told in sorted(times.items(), key=lambda pair: (place(pair[0], order), pair[0]))
    ]


def time_values(times: Mapping[str, Any]) -> dict[tuple[str, str], Value]:
    """By (method, metric), as the paper's tables print them; the spread over seeds is not known."""
    found = {}
    for method, told in times.items():
        training = method_training(told)
        if training is not None:
            found[method, TRAINING_MINUTES] = Value(training / 60, math.nan)
        if "question_seconds" in told:
            found[method, QUESTION_SECONDS] = Value(told["question_seconds"], math.nan)
    return found
