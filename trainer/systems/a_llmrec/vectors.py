"""What the soft tokens are made of, standardised as in training: the items' vectors and the users' states.

Shapes: I items, E width of the vectors, N users asked, M questions trained on, D width of the recommender.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recloom.trainer.collaborative.evaluate import user_vectors
from recloom.trainer.collaborative.registry import load_backbone
from recloom.trainer.item_texts import item_texts
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec.align import load_alignment, load_joint
from recloom.trainer.systems.a_llmrec.backbones import FOLDER
from recloom.trainer.systems.a_llmrec.methods import Vectors
from recloom.trainer.systems.a_llmrec.prepare import Task, models_run
from recloom.trainer.systems.a_llmrec.projection import standardised
from recloom.trainer.systems.a_llmrec.prompts import load_cold, load_states
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig

ALIGN = "align"


@dataclass(frozen=True)
class SoftTables:
    """users_ND: one row a user asked; items_IE: the catalogue."""

    users_ND: Tensor
    items_IE: Tensor


def soft_tables(
    run: Run[ALLMRecConfig],
    task: Task,
    vectors: Vectors,
    users_N: np.ndarray,
    histories: Sequence[np.ndarray],
) -> SoftTables:
    """The vectors that a method is asked with: states behind the histories, and every item's."""
    source = models_run(run)
    if source is not run:
        return foreign_tables(run, source, task, histories)
    states_ND = user_vectors(load_backbone(run.path(FOLDER)), users_N, histories)
    return SoftTables(user_table(run, states_ND), item_table(run, vectors, task.cold_I))


def user_table(run: Run[ALLMRecConfig], states_ND: Tensor) -> Tensor:
    """User states (N, D) on the scale of those that F_U was trained with."""
    return standardised(states_ND, load_states(run))


def item_table(run: Run[ALLMRecConfig], vectors: Vectors, cold_I: np.ndarray) -> Tensor:
    """The items' vectors (I, E) on the scale of those that F_I was trained with."""
    known_IE = known_table(run, vectors, cold_I)
    asked_IE = load_joint(run.path(ALIGN)).text_IE if vectors == "text" and not noise(run) else known_IE
    return standardised(asked_IE, known_IE[torch.from_numpy(~cold_I)])


def known_table(run: Run[ALLMRecConfig], vectors: Vectors, cold_I: np.ndarray) -> Tensor:
    """What F_I is trained with: the backbone's vectors, or e_i with q_i for items without interactions.

    Section 4.1.4. `project.item_vectors: random` puts noise in the place of both (Table 7, row 4).
    """
    if vectors == "backbone":
        return load_backbone(run.path(FOLDER)).item_vectors().detach()
    joint = load_joint(run.path(ALIGN))
    if noise(run):
        return torch.randn(joint.item_IE.shape, generator=torch.Generator().manual_seed(run.config.seed))
    return torch.where(torch.from_numpy(cold_I)[:, None], joint.text_IE, joint.item_IE)


def noise(run: Run[ALLMRecConfig]) -> bool:
    return run.config.project.item_vectors == "random"


@torch.no_grad()
def foreign_tables(
    run: Run[ALLMRecConfig], source: Run[ALLMRecConfig], task: Task, histories: Sequence[np.ndarray]
) -> SoftTables:
    """Vectors of another data set's items and users (section 5.2.5): only text carries over.

    Items are q. The paper does not say what a user's vector is where the recommender knows no item of the
    history; here it is the mean of the history's items in the recommender's own space, decoded from q.
    """
    alignment, encoder = load_alignment(source.path(ALIGN))
    texts = item_texts(task.tables, source.config.item_text.style, run.config.item_text.attributes)
    q_IE = alignment.texts.encode(encoder.encode(texts))
    decoded_ID = alignment.items.decode(q_IE)
    nothing_D = torch.zeros(decoded_ID.shape[1])
    states_ND = torch.stack([decoded_ID[items].mean(0) if len(items) else nothing_D for items in histories])
    cold_J = load_cold(source)
    known_JE = known_table(source, "joint", cold_J)[torch.from_numpy(~cold_J)]
    return SoftTables(user_table(source, states_ND), standardised(q_IE, known_JE))
