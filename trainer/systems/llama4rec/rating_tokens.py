"""Ratings as tokens: asking for the probability of every label of the scale.

A label such as 4 is one token, and one forward pass gives its probability. Tokenizers that write
digits one by one (LLaMA's, SmolLM2's) make two of "10": then "1" is followed by "0" or by the end,
and a second question, with "1" already written, tells how often.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Sample
from recloom.data_shards.tables import Tables
from recloom.data_shards.textualize.rating import rating_text
from recloom.trainer.requests import Answer, Request

TEXT_TOKENS = 8  # enough for a rating written out


@dataclass(frozen=True)
class LabelTree:
    """The labels by their first token: alone, or parted by a second token (the end token for none)."""

    alone: dict[int, float]
    parted: dict[int, dict[int, float]]

    @property
    def first_ids(self) -> tuple[int, ...]:
        return (*self.alone, *self.parted)


def rating_scale(tables: Tables) -> tuple[float, float]:
    """The lowest and the highest rating of the data set."""
    ratings = tables.interactions["rating"].to_numpy()
    return float(ratings.min()), float(ratings.max())


def rating_labels(tables: Tables) -> list[float]:
    """The whole-number scale of the data set, such as 1 to 5."""
    ratings = np.unique(tables.interactions["rating"].to_numpy())
    if not np.all(ratings == np.round(ratings)) or len(ratings) > 20:
        raise UserError(
            "rank.rating_rule = expected: the ratings of the data set are no short whole-number scale: "
            "set rank.rating_rule to integer."
        )
    return [float(value) for value in range(int(ratings.min()), int(ratings.max()) + 1)]


def label_tree(renderer: Renderer, labels: Iterable[float]) -> LabelTree:
    """How the tokenizer writes the labels on the answer's line. Raises UserError for over two tokens."""
    by_first: dict[int, dict[int, float]] = {}
    for label in labels:
        tokens = renderer.answer_ids(rating_text(label))
        if len(tokens) > 2:
            raise UserError(
                f"rank.rating_rule = expected: the tokenizer writes the rating {rating_text(label)} as "
                f"{len(tokens)} tokens, the expectation takes at most two: set rank.rating_rule to integer."
            )
        second = tokens[1] if len(tokens) == 2 else renderer.eos_id
        by_first.setdefault(tokens[0], {})[second] = label
    return LabelTree(
        alone={first: next(iter(rest.values())) for first, rest in by_first.items() if len(rest) == 1},
        parted={first: rest for first, rest in by_first.items() if len(rest) > 1},
    )


def rating_requests(
    renderer: Renderer, sample: Sample, tree: LabelTree | None, **meta: object
) -> list[Request]:
    """Ask for the labels' probabilities, or for the rating as text when there is no tree."""
    prompt = tuple(renderer.render_prompt(sample.prompt))
    meta |= {"item": sample.meta["items"][0]}
    if tree is None:
        return [Request(prompt, max_tokens=TEXT_TOKENS, meta=meta)]
    labels = [*tree.alone.values(), *[None] * len(tree.parted)]
    made = [Request(prompt, 1, score_ids=tree.first_ids, meta={**meta, "labels": labels})]
    for first, rest in tree.parted.items():
        inner = {**meta, "labels": list(rest.values()), "after": tree.first_ids.index(first)}
        made.append(Request((*prompt, first), 1, score_ids=tuple(rest), meta=inner))
    return made


def expected_rating(answers: Sequence[Answer]) -> float | None:
    """The mean label under the probabilities renormalised over the labels; None when one was refused.

    answers: all that came back for one question of `rating_requests` with a tree.
    """
    if any(answer.error is not None for answer in answers):
        return None
    inner = {answer.meta["after"]: answer for answer in answers if "after" in answer.meta}
    first = next(answer for answer in answers if "after" not in answer.meta)
    values = [
        mean_label(inner[place], inner[place].meta["labels"]) if label is None else label
        for place, label in enumerate(first.meta["labels"])
    ]
    return mean_label(first, values)


def mean_label(answer: Answer, values: Sequence[float]) -> float:
    scores = np.array(answer.scores)
    weight = np.exp(scores - scores.max())
    return float((weight * values).sum() / weight.sum())
