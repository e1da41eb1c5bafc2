"""Stage 2 of A-LLMRec: F_U and F_I into the token space of a frozen LLM (Kim et al. 2024, section 4.2).

Shapes: N rows, U user rows and J items of a packed row, I items, D width of the recommender, E width of the
item vectors, H width of the LLM, B = 1 row of T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from recloom.data_shards.artifacts import atomic_write_bytes, atomic_write_json, read_manifest
from recloom.kernels.soft_layout import mark
from recloom.kernels.soft_tokens import soft_tokens

WEIGHTS, DESCRIPTION = "projection.safetensors", "projection.json"


@dataclass(frozen=True)
class Widths:
    """user: D, None without a user vector; item: E, None without item vectors; hidden: between the layers."""

    user: int | None
    item: int | None
    hidden: int
    tokens: int


class Projection(nn.Module):
    """F_U: Linear, LayerNorm, LeakyReLU, Linear. F_I: Linear, LayerNorm, GELU, Linear (eq. 7, protocol).

    A network whose vectors are not used does not exist: it would never get a gradient.
    """

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.widths = widths
        self.user = None if widths.user is None else two_layers(widths.user, nn.LeakyReLU(), widths)
        self.item = None if widths.item is None else two_layers(widths.item, nn.GELU(), widths)

    def forward(self, users_UD: Tensor, items_JE: Tensor) -> Tensor:
        """Soft rows (U + J, H): the users', then the items'. A missing network takes no rows."""
        return torch.cat([*self.rows(self.user, users_UD), *self.rows(self.item, items_JE)])

    @staticmethod
    def rows(network: nn.Module | None, vectors_NX: Tensor) -> Iterator[Tensor]:
        if network is not None:
            yield network(vectors_NX.to(next(network.parameters()).dtype))

    @torch.no_grad()
    def match_scale(self, users_ND: Tensor, items_IE: Tensor, scale: float) -> None:
        """Scale the last layers so that soft rows start as large as token embeddings (root mean square).

        Rows several times larger than a token's drown the text that the frozen LLM was trained to read.
        """
        for network, vectors_NX in ((self.user, users_ND), (self.item, items_IE)):
            for rows_NH in self.rows(network, vectors_NX):
                assert isinstance(network, nn.Sequential)
                last = network[-1]
                ratio = scale / rows_NH.float().square().mean().sqrt().item()
                for parameter in last.parameters():
                    parameter.mul_(ratio)


def two_layers(width: int, activation: nn.Module, widths: Widths) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, widths.hidden),
        nn.LayerNorm(widths.hidden),
        activation,
        nn.Linear(widths.hidden, widths.tokens),
    )


def standardised(vectors_NX: Tensor, like_MX: Tensor) -> Tensor:
    """Vectors (N, X) in float32 with the mean and deviation of `like` taken out, per dimension.

    The first linear layer could do the same, so it changes no function; but the joint embeddings lie close
    together behind their sigmoid, and bfloat16 would round their differences away. A constant dimension is 0.
    """
    like_MX = like_MX.float()
    deviation_X = like_MX.std(0, correction=0)  # of many equal numbers not quite 0
    varies_X = like_MX.amax(0) > like_MX.amin(0)
    return (vectors_NX.float() - like_MX.mean(0)) / deviation_X.where(varies_X, torch.inf)


class ProjectedLM(nn.Module):
    """A frozen LLM whose prompts hold projected vectors; only the projection is trained.

    users_ND and items_IE are plain tensors, not buffers: an engine that casts modules leaves them in float32.
    """

    def __init__(self, llm: nn.Module, projection: Projection, users_ND: Tensor, items_IE: Tensor) -> None:
        super().__init__()
        self.llm = llm.requires_grad_(False)
        self.projection = projection
        self.tables = (users_ND, items_IE)

    @property
    def config(self) -> Any:
        return self.llm.config

    def forward(
        self, input_ids: Tensor, soft_BT: Tensor, user_rows_U: Tensor, items_J: Tensor, **inputs: Any
    ) -> Any:
        """The LLM's output for prompts that `embed` makes."""
        return self.llm(inputs_embeds=self.embed(input_ids, soft_BT, user_rows_U, items_J), **inputs)

    def embed(self, input_ids: Tensor, soft_BT: Tensor, user_rows_U: Tensor, items_J: Tensor) -> Tensor:
        """Embeddings (B, T, H). soft_BT: the soft row of a position (users, then items), -1 for a token."""
        users_ND, items_IE = (table.to(input_ids.device) for table in self.tables)
        if self.projection.user is None:  # then the items' rows come first
            soft_BT = torch.where(soft_BT >= 0, soft_BT - len(user_rows_U), soft_BT)
        rows_NH = self.projection(users_ND[user_rows_U], items_IE[items_J])
        table: Any = self.llm.get_input_embeddings()  # type: ignore[operator]
        # A row of padding has no slot; its gradients are zeros, so every rank reduces the same parameters.
        return soft_tokens(mark(input_ids, soft_BT), table, rows_NH)


def save_projection(weights: dict[str, Tensor], widths: Widths, folder: Path) -> None:
    """Weights by the names of `Projection`; the caller writes the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / WEIGHTS, safetensors.torch.save({k: v.cpu() for k, v in weights.items()}))
    atomic_write_json(folder / DESCRIPTION, asdict(widths))


def load_projection(folder: Path) -> Projection:
    """The trained projection in float32, in evaluation mode. Raises UserError for a damaged folder."""
    read_manifest(folder, verify=True)
    projection = Projection(Widths(**json.loads((folder / DESCRIPTION).read_text())))
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    projection.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return projection.eval()
