"""M-Former: query experts that read a user's collaborative states into an LLM prefix (Zhang et al. 2024,
"Laser", section 3.2, appendix B).

Shapes: B users, N items of the longest history, D width of the recommender, K experts, L tokens of an
expert, W hidden width, H width of the LLM; in attention Q queries, X width and M length of what they read,
A heads, w width of a head.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn

from recloom.trainer.systems.laser.router import Router, RouterStatistics


class MFormerSettings(BaseModel):
    """The defaults are the paper's (appendix B); dropout, which it leaves out, is BERT's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: PositiveInt = Field(default=8, description="query experts, K; 1 is the ablation w/o MoE")
    tokens: PositiveInt = Field(default=32, description="virtual tokens of an expert and of the prefix, L")
    blocks: PositiveInt = Field(default=12, description="transformer blocks, every second reads the history")
    hidden: PositiveInt = Field(default=768, description="hidden width")
    heads: PositiveInt = Field(default=12, description="attention heads")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    router_gradient: Literal["scaled", "none"] = Field(
        default="scaled",
        description="scaled: the expert's tokens times its score, so the task reaches the router, as in "
        "Switch; none: only the balance loss does (profile paper)",
    )

    @model_validator(mode="after")
    def heads_divide(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(
                f"hidden is {self.hidden}, heads is {self.heads}: heads must divide hidden, "
                "change one of them."
            )
        return self


class MFormerOutput(NamedTuple):
    """prefix_BLH: the virtual tokens before each user's text. router: what chose their expert."""

    prefix_BLH: Tensor
    router: RouterStatistics


class Attention(nn.Module):
    """Multi-head attention of hidden states over states of another width."""

    def __init__(self, width: int, read_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(read_width, width), nn.Linear(read_width, width)

    def forward(self, hidden_BQW: Tensor, read_BMX: Tensor, mask_BM: Tensor | None = None) -> Tensor:
        """(B, Q, W). mask_BM: True where there is something to read; None reads all."""
        query_BAQw, key_BAMw, value_BAMw = (
            states.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for states in (self.query(hidden_BQW), self.key(read_BMX), self.value(read_BMX))
        )
        mixed_BAQw = F.scaled_dot_product_attention(
            query_BAQw,
            key_BAMw,
            value_BAMw,
            attn_mask=None if mask_BM is None else mask_BM[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        mixed_BQW: Tensor = self.out(mixed_BAQw.transpose(1, 2).flatten(2))
        return mixed_BQW


class Block(nn.Module):
    """Self-attention, cross-attention to the history where `read_width` is given, feed-forward; pre-norm.

    The order of the sublayers is that of BLIP-2's Q-Former (Li et al. 2023), on which the paper's appendix B
    fits line by line. Its norms stand behind each sublayer, as in BERT; here they stand before, for two
    reasons. All is trained from random weights at a constant rate, for which deep post-norm stacks need a
    warm-up (Xiong et al. 2020). And a norm behind the first sublayer takes out most of the scale of the
    expert's tokens, through which the task reaches the router.
    """

    def __init__(self, settings: MFormerSettings, read_width: int | None) -> None:
        super().__init__()
        width, heads, dropout = settings.hidden, settings.heads, settings.dropout
        self.self_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attention = Attention(width, width, heads, dropout)
        self.cross_norm = None if read_width is None else nn.LayerNorm(width)
        self.cross_attention = None if read_width is None else Attention(width, read_width, heads, dropout)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BLW: Tensor, C_BND: Tensor, mask_BN: Tensor) -> Tensor:
        normed_BLW = self.self_norm(hidden_BLW)
        hidden_BLW = hidden_BLW + self.dropout(self.self_attention(normed_BLW, normed_BLW))
        if self.cross_attention is not None and self.cross_norm is not None:
            read_BLW = self.cross_attention(self.cross_norm(hidden_BLW), C_BND, mask_BN)
            hidden_BLW = hidden_BLW + self.dropout(read_BLW)
        return hidden_BLW + self.dropout(self.feed(self.feed_norm(hidden_BLW)))


class MFormer(nn.Module):
    """The router, K experts of L trainable tokens, Z blocks, and a linear layer into the LLM's width."""

    def __init__(self, settings: MFormerSettings, recommender_width: int, llm_width: int) -> None:
        super().__init__()
        self.settings = settings
        self.router = Router(recommender_width, settings.experts)
        self.blocks = nn.ModuleList(
            Block(settings, recommender_width if place % 2 == 0 else None) for place in range(settings.blocks)
        )
        self.norm = nn.LayerNorm(settings.hidden)
        self.projection = nn.Linear(settings.hidden, llm_width)
        # As large as a normalised hidden state: small tokens would drown in what the blocks add to all alike.
        # All experts start as one, so that a user and the next item, whoever reads them, start alike too:
        # different ones cost half of what untrained vectors know (docs/lab-log.md, 2026-11-22).
        first_LW = torch.randn(settings.tokens, settings.hidden)
        self.experts_KLW = nn.Parameter(first_LW.repeat(settings.experts, 1, 1))

    def forward(self, C_BND: Tensor, mask_BN: Tensor) -> MFormerOutput:
        """The prefix of each user, and what the router made of the batch.

        Args:
            C_BND: the frozen recommender's states, standardised by the caller over all histories: what all
                users have in common would send them to one expert (`balance_losses`). What stands at
                padding is not read. An item by itself is a history of length 1.
            mask_BN: bool, True at real items, at least one a user.
        """
        C_BND = C_BND.masked_fill(~mask_BN[:, :, None], 0)
        router = self.router(C_BND, mask_BN)
        hidden_BLW = self.experts_KLW[router.chosen_B]
        C_BND = C_BND.to(hidden_BLW.dtype)
        if self.settings.router_gradient == "scaled":
            score_B1 = router.scores_BK.gather(1, router.chosen_B[:, None])
            hidden_BLW = hidden_BLW * score_B1[:, :, None].to(hidden_BLW.dtype)
        for block in self.blocks:
            hidden_BLW = block(hidden_BLW, C_BND, mask_BN)
        return MFormerOutput(self.projection(self.norm(hidden_BLW)), router)

    @torch.no_grad()
    def match_scale(self, scale: float) -> None:
        """Start the prefix as large as token embeddings, whose root mean square is `scale`.

        The last norm's output has mean 0 and variance 1, so no data are needed. A prefix many times larger
        than a token would drown the text that the frozen LLM was trained to read.
        """
        nn.init.normal_(self.projection.weight, std=scale * self.settings.hidden**-0.5)
        nn.init.zeros_(self.projection.bias)
