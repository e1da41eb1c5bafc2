"""Stage 1 of A-LLMRec: joint collaborative-text embeddings (Kim et al. 2024, section 4.1, eq. 2-6).

Two autoencoders, one of the frozen recommender's item vectors and one of the sentence encoder's text
vectors, whose hidden layers are drawn together.

Shapes: B sequences, L positions, N targets (the positions of the batch that are trained on, row by row),
D width of the recommender, W width of the text embeddings, E width of the joint embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

Profile = Literal["paper", "released"]

PROFILES: dict[Profile, dict[str, Any]] = {
    "paper": {"score": "dot", "negatives_too": False, "recommender_dropout": False, "beta": 0.5},
    "released": {"score": "mean", "negatives_too": True, "recommender_dropout": True, "beta": 0.2},
}


class AlignmentSettings(BaseModel):
    """Settings of stage 1; `of` starts from a profile. The defaults are the paper's, beta that of Movies and
    Games (Table 11; 0.2 for Beauty and Toys)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: PositiveInt = Field(default=128, description="width of the joint embeddings, d'")
    alpha: NonNegativeFloat = Field(default=0.5, description="weight of the item reconstruction (eq. 6)")
    beta: NonNegativeFloat = Field(default=0.5, description="weight of the text reconstruction (eq. 6)")
    score: Literal["dot", "mean"] = Field(
        default="dot", description="logit of user and item: dot product, or mean over its dimensions"
    )
    negatives_too: bool = Field(
        default=False, description="match and reconstruct the negative item as well as the positive"
    )
    recommender_dropout: bool = Field(default=False, description="dropout of the frozen recommender is on")
    targets: Literal["last", "all"] = Field(
        default="last", description="items of a sequence that are trained on (all: section 5.4.2)"
    )
    matching: bool = Field(default=True, description="eq. 2; off in an ablation of Table 6")
    item_recon: bool = Field(default=True, description="eq. 3; off in an ablation of Table 6")
    text_recon: bool = Field(default=True, description="eq. 4; off in an ablation of Table 6")
    rec: bool = Field(default=True, description="eq. 5; off in an ablation of Table 6")

    @classmethod
    def of(cls, profile: Profile, **changes: Any) -> Self:
        """A profile's settings: `paper`, or `released` as the authors' code does it."""
        return cls(**{**PROFILES[profile], **changes})

    @model_validator(mode="after")
    def something_to_learn(self) -> Self:
        if not (self.matching or self.item_recon or self.text_recon or self.rec):
            raise ValueError("matching, item_recon, text_recon and rec are all off: leave one on.")
        return self


@dataclass(frozen=True)
class Targets:
    """What the losses look at: the N True positions of mask_BL, in row-major order.

    users_ND: x, the recommender's state before each target. positives_ND, negatives_ND: rows of its item
    table, E_i, of the target and of an item drawn as its negative. positive_text_NW, negative_text_NW: the
    sentence encoder's Q_i; the negatives' are read with `negatives_too` only.
    """

    mask_BL: Tensor
    users_ND: Tensor
    positives_ND: Tensor
    negatives_ND: Tensor
    positive_text_NW: Tensor
    negative_text_NW: Tensor | None = None

    def __post_init__(self) -> None:
        count = int(self.mask_BL.sum())
        parts = (self.users_ND, self.positives_ND, self.negatives_ND, self.positive_text_NW)
        lengths = [len(part) for part in (*parts, self.negative_text_NW) if part is not None]
        if count == 0 or set(lengths) != {count}:
            raise ValueError(f"mask_BL names {count} targets, at least 1 is needed; got rows {lengths}.")


@dataclass(frozen=True)
class Losses:
    """Scalars, unweighted; zero where switched off. `total` is eq. 6 and has the gradient."""

    matching: Tensor
    item_recon: Tensor
    text_recon: Tensor
    rec: Tensor
    total: Tensor


class Autoencoder(nn.Module):
    """A linear layer and a sigmoid in, a linear layer out."""

    def __init__(self, outer: int, inner: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(outer, inner), nn.Linear(inner, outer)

    def encode(self, rows_NX: Tensor) -> Tensor:
        return torch.sigmoid(self.encoder(rows_NX))

    def decode(self, hidden_NE: Tensor) -> Tensor:
        rows_NX: Tensor = self.decoder(hidden_NE)
        return rows_NX


class Alignment(nn.Module):
    """f_I and f_T of section 4.1: `items` has f_I's encoder and decoder, `texts` f_T's."""

    def __init__(self, item_width: int, text_width: int, settings: AlignmentSettings) -> None:
        super().__init__()
        self.settings = settings
        self.items = Autoencoder(item_width, settings.width)
        self.texts = Autoencoder(text_width, settings.width)

    def forward(self, targets: Targets) -> Losses:
        """The four losses and their weighted sum (eq. 6).

        The gradient reaches the autoencoders and what made the text embeddings. It stops at everything of
        the recommender, which is frozen.
        """
        settings = self.settings
        weights_N = sequence_weights(targets.mask_BL, targets.users_ND.dtype)
        losses = self.pair_losses(targets.positives_ND.detach(), targets.positive_text_NW, weights_N)
        if settings.negatives_too:
            if targets.negative_text_NW is None:
                raise ValueError("negatives_too is on: Targets needs negative_text_NW.")
            others = self.pair_losses(targets.negatives_ND.detach(), targets.negative_text_NW, weights_N)
            losses = [one + other for one, other in zip(losses, others, strict=True)]
        matching, item_recon, text_recon = losses
        rec = self.rec_loss(targets, weights_N) if settings.rec else weights_N.new_zeros(())
        total = matching + settings.alpha * item_recon + settings.beta * text_recon + rec
        return Losses(matching, item_recon, text_recon, rec, total)

    def pair_losses(self, items_ND: Tensor, text_NW: Tensor, weights_N: Tensor) -> list[Tensor]:
        """Matching, item and text reconstruction (eq. 2-4) of items with their texts.

        The text embedding as the *target* of eq. 4 is a constant, as in the authors' code. Otherwise the
        sentence encoder, which is trained, could meet its reconstruction by making all texts alike.
        """
        settings, nothing = self.settings, weights_N.new_zeros(())
        e_NE, q_NE = self.items.encode(items_ND), self.texts.encode(text_NW)
        return [
            mse(e_NE, q_NE, weights_N) if settings.matching else nothing,
            mse(self.items.decode(e_NE), items_ND, weights_N) if settings.item_recon else nothing,
            mse(self.texts.decode(q_NE), text_NW.detach(), weights_N) if settings.text_recon else nothing,
        ]

    def rec_loss(self, targets: Targets, weights_N: Tensor) -> Tensor:
        """Eq. 5: the user's state tells the decoded positive item from the decoded negative.

        As printed, both terms of eq. 5 have the positive item. The text below it defines the embedding of a
        negative item, which nothing else uses: the second term is that item's. The printed sum over users is
        taken as the mean, like the expectations of eq. 2-4 and as in the authors' code, so that the losses'
        balance does not depend on the batch size.
        """
        positive_N, negative_N = (
            self.logits(targets.users_ND.detach(), items_ND.detach())
            for items_ND in (targets.positives_ND, targets.negatives_ND)
        )
        # log(1 - sigmoid(s)) = logsigmoid(-s), which stays finite for large s
        loss_N = -F.logsigmoid(positive_N) - F.logsigmoid(-negative_N)
        return (weights_N * loss_N).sum()

    def logits(self, users_ND: Tensor, items_ND: Tensor) -> Tensor:
        """s(x, f_dec(f_enc(E_i))), (N,)."""
        product_ND = users_ND * self.items.decode(self.items.encode(items_ND))
        return product_ND.sum(1) if self.settings.score == "dot" else product_ND.mean(1)

    def joint_embeddings(self, items_ND: Tensor, text_NW: Tensor | None, cold_N: Tensor) -> Tensor:
        """Joint embeddings (N, E): e_i, or q_i where cold_N is True (section 4.1.4).

        Rows that are not used are not read: text of warm items and vectors of cold ones may be anything,
        and text_NW None where nothing is cold. All cold is the variant "A-LLMRec (SBERT)".
        """
        if text_NW is None:
            if bool(cold_N.any()):
                raise ValueError("cold items are embedded by their text: joint_embeddings needs text_NW.")
            return self.items.encode(items_ND)
        warm_N = ~cold_N
        e_NE, q_NE = self.items.encode(items_ND[warm_N]), self.texts.encode(text_NW[cold_N])
        place_N = torch.cat([warm_N.nonzero()[:, 0], cold_N.nonzero()[:, 0]]).argsort()
        return torch.cat([e_NE, q_NE])[place_N]


def mse(rows_NX: Tensor, targets_NX: Tensor, weights_N: Tensor) -> Tensor:
    """The mean over X of the squared difference, then the weighted sum over rows."""
    return (weights_N * (rows_NX - targets_NX).square().mean(1)).sum()


def sequence_weights(mask_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights (N,) that make a sum the mean over sequences of the mean over a sequence's targets (eq. 2-4).

    Sequences without a target do not count.
    """
    counts_B = mask_BL.sum(1, dtype=dtype)
    return (1 / (counts_B * (counts_B > 0).sum()))[mask_BL.nonzero()[:, 0]]


def target_mask(real_BL: Tensor, targets: Literal["last", "all"]) -> Tensor:
    """Which positions (B, L) are trained on: all real ones, or each sequence's last."""
    if targets == "all":
        return real_BL
    later_BL = real_BL.long().flip(1).cumsum(1).flip(1)
    return real_BL & (later_BL == 1)


def freeze_recommender(recommender: nn.Module, settings: AlignmentSettings) -> None:
    """No gradient into the recommender; its dropout off, or left on as in the authors' code."""
    recommender.requires_grad_(False)
    recommender.train(settings.recommender_dropout)
