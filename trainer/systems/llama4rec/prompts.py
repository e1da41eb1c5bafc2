"""The prompts of Llama4Rec from data and backbones: histories, similar users, predictions.

One `Prompter` belongs to one task and one view of the data: which rows are known history, which
backbone speaks. Training prompts take the inner backbone and its rows, test prompts the base or
augmented backbone and all rows before the target; the text is made by the same code.

Shapes: U users, D vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from recloom.data_shards.samples import Sample
from recloom.data_shards.splits import Interactions
from recloom.data_shards.textualize import listwise, rating
from recloom.data_shards.textualize.template import Template, TextOptions, load_template, one_line_titles
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.evaluate import user_vectors
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig

CHUNK = 4096


@dataclass(frozen=True)
class Histories:
    """Rows sorted by user and time; start_U: where a user's rows begin, one more entry at the end."""

    rows: Interactions
    start_U: np.ndarray

    @classmethod
    def of(cls, rows: Interactions, num_users: int) -> Histories:
        return cls(rows, np.searchsorted(rows.user_N, np.arange(num_users + 1)))

    def own(self, user: int) -> slice:
        return slice(int(self.start_U[user]), int(self.start_U[user + 1]))

    def items(self, user: int) -> np.ndarray:
        """All items of a user, oldest first."""
        return self.rows.item_N[self.own(user)]

    def rated(self, user: int, count: int, without: int | None) -> list[tuple[int, float]]:
        """The latest (item, rating) pairs, oldest first."""
        own = self.own(user)
        pairs = zip(self.rows.item_N[own].tolist(), self.rows.rating_N[own].tolist(), strict=True)
        return [pair for pair in pairs if pair[0] != without][-count:]


@dataclass(frozen=True)
class Prompter:
    """Writes the prompts of one task.

    Attributes:
        known: what may be shown of the user who is asked about.
        train: what may be shown of a similar user: training rows only (protocol).
        disliked: each user's disliked items, empty where they are not shown.
        similar_U: each user's most similar user (-1 where none); None switches this augmentation off.
        predict: whether the backbone's prediction is written.
    """

    config: Llama4RecConfig
    template: Template
    options: TextOptions
    known: Histories
    train: Histories
    disliked: list[np.ndarray]
    similar_U: np.ndarray | None
    predict: bool

    def without_prediction(self) -> Prompter:
        """The same prompts with the backbone's prediction switched off."""
        return replace(self, predict=False)

    def history(self, user: int) -> np.ndarray:
        """All known items of a user, oldest first."""
        return self.known.items(user)

    def similar_user(self, user: int) -> int | None:
        if self.similar_U is None or self.similar_U[user] < 0:
            return None
        return int(self.similar_U[user])

    def listwise(
        self, user: int, candidates: Sequence[int], prediction: Sequence[int], answer: Sequence[int] | None
    ) -> Sample:
        """A ranking prompt. `prediction`: the candidates in the backbone's order; shown when switched on."""
        prompts = self.config.prompts
        own = self.history(user)
        hated = self.disliked[user] if self.disliked else np.empty(0, dtype=np.int64)
        history = last(own[~np.isin(own, hated)], prompts.history_items)
        disliked = last(hated, prompts.disliked_items)
        similar = self.similar_user(user)
        context = listwise.ListwiseContext(
            user=user,
            history=history,
            liked=history if disliked else None,
            disliked=disliked or None,
            candidates=[int(item) for item in candidates],
            similar_history=None
            if similar is None
            else last(self.train.items(similar), prompts.similar_items),
            prediction=[int(item) for item in prediction[: prompts.prediction_items]]
            if self.predict
            else None,
            answer=None if answer is None else [int(item) for item in answer[: prompts.answer_items]],
        )
        return listwise.listwise_sample(self.template, context, self.options)

    def rating(self, user: int, item: int, prediction: float, answer: float | None) -> Sample:
        """A rating prompt; `prediction` is the backbone's, shown when switched on."""
        prompts = self.config.prompts
        similar = self.similar_user(user)
        context = rating.RatingContext(
            user=user,
            item=int(item),
            history=self.known.rated(user, prompts.history_items, item),
            similar_history=None
            if similar is None
            else self.train.rated(similar, prompts.similar_items, None),
            prediction=float(prediction) if self.predict else None,
            answer=None if answer is None else float(answer),
        )
        return rating.rating_sample(self.template, context, self.options)


def last(items: np.ndarray, count: int) -> list[int]:
    return [int(item) for item in items[-count:]] if count else []


def make_prompter(
    config: Llama4RecConfig,
    titles: list[str],
    num_users: int,
    task: str,
    known: Interactions,
    train: Interactions,
    disliked: Interactions | None,
    backbone: Backbone | None,
) -> Prompter:
    """A prompter for `task`. Without a backbone both prompt augmentations are off (plain IFT prompts)."""
    prompts = config.prompts
    family, name = (
        (rating.FAMILY, prompts.rating_template)
        if task == "rating"
        else (listwise.FAMILY, prompts.listwise_template)
    )
    similar = None
    if backbone is not None and prompts.similar_user:
        similar = similar_users(backbone, train.sequences(num_users))
    return Prompter(
        config=config,
        template=load_template(name, family),
        options=TextOptions(one_line_titles(titles), prompts.item_noun),
        known=Histories.of(known, num_users),
        train=Histories.of(train, num_users),
        disliked=[] if disliked is None else disliked.sequences(num_users),
        similar_U=similar,
        predict=backbone is not None and prompts.backbone_prediction,
    )


@torch.no_grad()
def similar_users(backbone: Backbone, histories: list[np.ndarray]) -> np.ndarray:
    """Each user's nearest other user by cosine of the backbone's user vectors (eq. 4), -1 for none.

    Users without known items are never chosen: they have nothing to show.
    """
    num_users = len(histories)
    users_U = torch.arange(num_users)
    known_UD = user_vectors(backbone, users_U.numpy(), histories)
    vectors_UD = torch.nn.functional.normalize(known_UD.float(), dim=1)
    empty_U = torch.tensor([len(items) == 0 for items in histories])
    nearest = torch.empty(num_users, dtype=torch.long)
    for start in range(0, num_users, CHUNK):
        rows = users_U[start : start + CHUNK]
        cosine_BU = vectors_UD[rows] @ vectors_UD.T
        cosine_BU[:, empty_U] = -torch.inf
        cosine_BU[torch.arange(len(rows)), rows] = -torch.inf
        best, index = cosine_BU.max(dim=1)
        nearest[rows] = index.masked_fill(best == -torch.inf, -1)
    return nearest.numpy()
