"""Answers about favourite genres, method beside method (section 5.4.4 of A-LLMRec)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recloom.trainer.report.results import Row, place
from recloom.trainer.report.system_view import SystemView


@dataclass(frozen=True)
class Genres:
    """answers, prompts: by user, then by method."""

    methods: list[str]
    answers: dict[int, dict[str, str]]
    prompts: dict[int, dict[str, str]]


def genre_answers(rows: Sequence[Row], view: SystemView) -> Genres | None:
    """The rows of genres.jsonl; None where there are none."""
    if not rows:
        return None
    order = tuple(view.methods)
    names = {row["method"]: view.model_names.get(row["method"], row["method"]) for row in rows}
    answers: dict[int, dict[str, str]] = {}
    prompts: dict[int, dict[str, str]] = {}
    for row in rows:
        answers.setdefault(row["user"], {})[names[row["method"]]] = row["answer"]
        prompts.setdefault(row["user"], {})[names[row["method"]]] = row["prompt"]
    methods = sorted(set(names.values()), key=lambda name: (place(name, order), name))
    return Genres(methods, answers, prompts)
