"""Who is asked at test, and about which candidates.

Shapes: N users asked, C candidates of a user.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recloom.data_shards.candidates import NO_ITEM
from recloom.data_shards.scenarios import FULL, item_groups
from recloom.data_shards.splits import Interactions
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.evaluate import rank_topk
from recloom.trainer.systems.a_llmrec.prepare import Task
from recloom.trainer.systems.a_llmrec.settings import ScenarioBlock

GROUPS = ("warm", "cold")
SAMPLE_NUMBER = 21  # one stream of draws: which test users are asked


@dataclass(frozen=True)
class Asked:
    """Test rows with their candidates, as shown and filled up with NO_ITEM.

    groups: by reported scenario, which rows it counts. suffix: of the answers' files.
    """

    rows: Interactions
    items_NC: np.ndarray
    groups: dict[str, np.ndarray]
    suffix: str = ""

    def histories(self, task: Task) -> list[np.ndarray]:
        """What is known of each user, oldest first."""
        return [task.histories[user] for user in self.rows.user_N]

    def candidates(self, row: int) -> list[int]:
        """One user's candidates, without the filling."""
        return [int(item) for item in self.items_NC[row] if item != NO_ITEM]

    def ranks(self, scores_NC: np.ndarray) -> np.ndarray:
        """The target's 1-based rank by score (N,), ties against it; inf where it is no candidate."""
        is_target_NC = self.items_NC == self.rows.item_N[:, None]
        target_N1 = np.where(is_target_NC, scores_NC, -np.inf).max(axis=1, keepdims=True)
        beats_NC = ~(scores_NC < target_N1) & (self.items_NC != NO_ITEM) & ~is_target_NC
        return np.where(is_target_NC.any(axis=1), beats_NC.sum(axis=1) + 1.0, np.inf)


def asked_samples(task: Task, settings: ScenarioBlock) -> Asked:
    """The target among sampled items, for a sample of users and, with `overall`, of warm and cold targets.

    All samples are heads of one seeded order of users, so each is uniform within its own group.
    """
    rows, lists = task.scenario.splits.topk.test, task.scenario.test
    assert lists is not None
    order_N = np.random.default_rng([settings.seed, SAMPLE_NUMBER]).permutation(len(rows))
    groups = {settings.name: first_of(order_N, np.ones(len(rows), bool), settings.users)}
    if settings.name == "overall":
        masks = item_groups(task.scenario.splits.topk.train, task.tables.num_items)
        for name in GROUPS:
            member_N = masks[name][rows.item_N]
            own_N = member_N & groups["overall"]
            if settings.group_users is not None:
                own_N |= first_of(order_N, member_N, settings.group_users)
            groups[name] = own_N
    asked_N = np.logical_or.reduce(list(groups.values()))
    return Asked(
        rows.select(asked_N),
        lists.items_NC[asked_N],
        {name: mask_N[asked_N] for name, mask_N in groups.items()},
    )


def asked_full(task: Task, settings: ScenarioBlock, backbone: Backbone) -> Asked:
    """The backbone's first `negatives` + 1 items of the whole catalogue, for the users of `asked_samples`.

    A language model can only re-order them: where the target is not among them its rank is inf.
    """
    sampled = asked_samples(task, settings)
    rows = sampled.rows.select(sampled.groups[settings.name])
    histories = [task.histories[user] for user in rows.user_N]
    items_NC, _ = rank_topk(backbone, rows.user_N, histories, histories, settings.negatives + 1)
    return Asked(rows, items_NC, {settings.name + FULL: np.ones(len(rows), bool)}, suffix=FULL)


def first_of(order_N: np.ndarray, member_N: np.ndarray, count: int | None) -> np.ndarray:
    """Mask of the first `count` members in an order; None: all members."""
    chosen = order_N[member_N[order_N]][:count]
    mask_N = np.zeros(len(order_N), bool)
    mask_N[chosen] = True
    return mask_N
