"""The questions of evaluation and augmentation: prompts at validation and test time as bulk requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recloom.data_shards.renderer import Renderer
from recloom.data_shards.samples import Sample
from recloom.data_shards.splits import Interactions, Split, Splits, merged
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.data import leave_one_out_queries
from recloom.trainer.collaborative.evaluate import rank_topk, target_ranks
from recloom.trainer.requests import Choices, Request
from recloom.trainer.systems.llama4rec.methods import Part
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig


@dataclass(frozen=True)
class CandidateLists:
    """The backbone's top k' of every user with a target.

    users_B, targets_B, ranks_B (full-catalogue rank of the target, seen items left out), and
    items_Bk (best first, -1 = none left).
    """

    users_B: np.ndarray
    targets_B: np.ndarray
    ranks_B: np.ndarray
    items_Bk: np.ndarray

    @property
    def reachable_B(self) -> np.ndarray:
        """Whether the target is among the candidates."""
        return (self.items_Bk == self.targets_B[:, None]).any(axis=1)

    def select(self, chosen_B: np.ndarray) -> CandidateLists:
        """The lists of some users."""
        columns = (self.users_B, self.targets_B, self.ranks_B, self.items_Bk)
        return CandidateLists(*(column[chosen_B] for column in columns))

    def rows(self) -> Iterator[tuple[int, list[int]]]:
        """Every user with the candidates, best first."""
        for user, items_k in zip(self.users_B.tolist(), self.items_Bk.tolist(), strict=True):
            yield user, [item for item in items_k if item >= 0]


def candidate_lists(backbone: Backbone, split: Split, num_users: int, part: Part, k: int) -> CandidateLists:
    users, histories, seen, targets = leave_one_out_queries(split, num_users, part)
    items_Bk, _ = rank_topk(backbone, users, histories, seen, k)
    ranks = target_ranks(backbone, users, histories, seen, targets)
    return CandidateLists(users, targets, ranks, items_Bk)


def known_rows(split: Split, part: Part) -> Interactions:
    """What may be shown at validation or test: everything before the target."""
    if part == "valid":
        return split.train
    return merged(split.train, split.valid)


def known_disliked(config: Llama4RecConfig, splits: Splits, part: Part) -> Interactions | None:
    """The disliked rows for listwise prompts at evaluation: rated training rows below the threshold."""
    if config.disliked_below is None or config.prompts.disliked_items == 0:
        return None
    rows = known_rows(splits.rating, "valid")
    return rows.select(rows.rating_N < config.disliked_below)


def asked_rating_rows(config: Llama4RecConfig, rows: Interactions) -> Interactions:
    """The rating task's rows that the LLM is asked: of all users or of a seeded sample of users."""
    if config.rank.rating_users is None:
        return rows
    chosen = np.random.default_rng([config.seed, 11]).permutation(np.unique(rows.user_N))
    return rows.select(np.isin(rows.user_N, chosen[: config.rank.rating_users]))


def listwise_request(
    config: Llama4RecConfig,
    renderer: Renderer,
    sample: Sample,
    titles: Sequence[str],
    first_only: bool,
    **meta: object,
) -> Request:
    """Ask for the whole ranking, or for the first title alone; titles: one line an item."""
    shown = sample.meta["items"]
    choices = None
    if config.rank.constrained:
        count = 1 if first_only else min(config.prompts.answer_items, len(shown))
        choices = title_choices(renderer, [titles[item] for item in shown], count, first_only)
    return Request(
        prompt_ids=tuple(renderer.render_prompt(sample.prompt)),
        max_tokens=config.rank.max_answer_tokens if choices is None else longest_answer(choices),
        stop=("\n",) if first_only else (),
        choices=choices,
        meta={**meta, "candidates": shown},
    )


def title_choices(renderer: Renderer, titles: Sequence[str], count: int, first_only: bool) -> Choices:
    """Answers of `count` different titles, one a line; the first alone ends with its line, not the text."""
    lines = tuple(tuple(renderer.answer_ids(f"{title}\n")) for title in titles)
    if first_only:
        return Choices(lines, lines, count)
    return Choices(lines, tuple((*renderer.answer_ids(title), renderer.eos_id) for title in titles), count)


def longest_answer(choices: Choices) -> int:
    """Tokens of the longest answer that the choices allow."""
    longest = [max(map(len, pair)) for pair in zip(choices.inner, choices.last, strict=True)]
    return sum(sorted(longest)[-choices.count :])
