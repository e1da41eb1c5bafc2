"""Bi-Tuning: trainable virtual tokens before and after the text of a frozen LLM (Zhang et al. 2024, "Laser",
section 3.1.2, eq. 1-2).

The prefix stands before the text and attention is causal, so each position of the text sees it and only the
last position sees all. Tokens that begin every text (LLaMA's <s>) stay before the prefix: decoders rest their
attention on the first position, and with a prefix there the vectors tell less (docs/lab-log.md). A row is an
embedding that is no token's; kernels/soft_layout.py tells how they are placed.

Shapes: S samples (users or items), N items of the longest history, D width of the recommender, L prefix
tokens, R rows, H width of the LLM, T tokens, U columns of the longer padded batch, W positions of the longer
packed row.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from recloom.data_shards.errors import UserError
from recloom.data_shards.packing import block_causal_mask
from recloom.kernels.soft_layout import surround_packed, surround_padded
from recloom.kernels.soft_tokens import soft_tokens
from recloom.trainer.packed_attention import PACKED
from recloom.trainer.systems.laser.mformer import MFormer
from recloom.trainer.systems.laser.router import RouterStatistics

Pooling = Literal["suffix", "mean", "eos"]


class BiTuningOutput(NamedTuple):
    """states_SH: h_u or h_i, in the LLM's dtype. router: None without an M-Former."""

    states_SH: Tensor
    router: RouterStatistics | None


class Surround(NamedTuple):
    """What stands around the samples: rows, and which of them come before and after (None: nothing).

    prefix: (S, L) one list a sample, or (L,) shared. suffix: (1,).
    """

    rows_RH: Tensor
    prefix: Tensor | None
    suffix: Tensor | None
    router: RouterStatistics | None

    @property
    def added(self) -> int:
        """Positions that each sample grows by."""
        return sum(soft.shape[-1] for soft in (self.prefix, self.suffix) if soft is not None)


class BiTuning(nn.Module):
    """A frozen LLM that reads a text as one vector; only what stands around the text is trained.

    Args:
        llm: a Hugging Face base model, without a head (`base_model` of a causal one). Its dropout must be
            off by its rates: gradient checkpointing needs training mode.
        prefix: an M-Former; or the first values (L, H) of a free prefix, shared by all samples (the
            text-only variant, w/o M-Former); or None (w/o prefix).
        pooling: "suffix", the output at a trainable token; "eos", the output at a token that is not trained;
            "mean", over the outputs of prefix and text (Table 5).
        suffix_H: first value of the suffix: the mean token embedding. Read with pooling suffix only.
        eos: token id, read with pooling eos only.
        num_start: tokens that begin every text; the prefix stands behind them.

    Raises:
        UserError: nothing is left to train, or what the pooling reads is missing.
    """

    def __init__(
        self,
        llm: nn.Module,
        prefix: MFormer | Tensor | None,
        pooling: Pooling = "suffix",
        suffix_H: Tensor | None = None,
        eos: int | None = None,
        num_start: int = 0,
    ) -> None:
        super().__init__()
        check_parts(prefix, pooling, suffix_H, eos)
        self.llm = llm.requires_grad_(False)
        self.pooling, self.eos, self.num_start = pooling, eos, num_start
        self.mformer = prefix if isinstance(prefix, MFormer) else None
        self.prefix_LH = nn.Parameter(prefix.detach().clone()) if isinstance(prefix, Tensor) else None
        self.suffix_H: nn.Parameter | None = None
        if pooling == "suffix" and suffix_H is not None:
            self.suffix_H = nn.Parameter(suffix_H.detach().clone())

    @property
    def config(self) -> Any:
        return self.llm.config

    def forward(
        self,
        ids: Tensor,
        boundaries: list[int] | None = None,
        mask_ST: Tensor | None = None,
        C_SND: Tensor | None = None,
        real_SN: Tensor | None = None,
    ) -> BiTuningOutput:
        """The vector of each sample, of a packed row or of a padded batch.

        Args:
            ids: int64; packed (T,) with `boundaries`, or padded (S, T) with `mask_ST`.
            boundaries: ascending token offsets, the first 0, the last T, as `trainer/loss.py` passes them.
            mask_ST: bool or integer, 1 at real tokens, one run of them a row, on either side.
            C_SND, real_SN: what M-Former reads of each sample; None without an M-Former.

        Raises:
            UserError: a padded batch for an LLM whose attention takes packed rows only.
        """
        if (boundaries is None) == (mask_ST is None):
            raise ValueError("BiTuning needs one of boundaries (a packed row) and mask_ST (a padded batch).")
        around = self.surround(C_SND, real_SN, ids.device)
        if boundaries is not None:
            states_SH = self.packed(ids, boundaries, around)
        else:
            assert mask_ST is not None
            states_SH = self.padded(ids, mask_ST, around)
        return BiTuningOutput(states_SH, around.router)

    def surround(self, C_SND: Tensor | None, real_SN: Tensor | None, device: torch.device) -> Surround:
        """Rows around the samples. Under ZeRO-3 it can only be called inside of `forward`."""
        parts, prefix, suffix, router = [], None, None, None
        if self.mformer is not None:
            if C_SND is None or real_SN is None:
                raise ValueError("M-Former reads the histories: BiTuning needs C_SND and real_SN.")
            prefix_SLH, router = self.mformer(C_SND, real_SN)
            parts.append(prefix_SLH.flatten(0, 1))
            prefix = torch.arange(len(parts[0]), device=device).view(prefix_SLH.shape[:2])
        elif self.prefix_LH is not None:
            parts.append(self.prefix_LH)
            prefix = torch.arange(len(self.prefix_LH), device=device)
        if self.pooling != "mean":
            suffix = torch.tensor([sum(map(len, parts))], device=device)
            parts.append(self.last_row(device))
        return Surround(torch.cat(parts), prefix, suffix, router)

    def last_row(self, device: torch.device) -> Tensor:
        """The suffix, or the end token's embedding, (1, H)."""
        if self.suffix_H is not None:
            return self.suffix_H[None]
        table: Any = self.llm.get_input_embeddings()  # type: ignore[operator]
        row_1H: Tensor = table(torch.tensor([self.eos], device=device))
        return row_1H

    def packed(self, ids_T: Tensor, boundaries: list[int], around: Surround) -> Tensor:
        """Vectors (S, H) of a packed row. The longer samples' ends are counted on the host, not read back."""
        starts_S1 = torch.tensor(boundaries, device=ids_T.device)
        row = surround_packed(ids_T, starts_S1, around.prefix, around.suffix, after=self.num_start)
        embedded_WH = self.embed(row.source_W, around.rows_RH)
        longer = [start + place * around.added for place, start in enumerate(boundaries)]
        if self.config._attn_implementation == PACKED:
            attention: dict[str, Any] = {"boundaries": longer}
        else:
            mask = block_causal_mask(row.cu_seqlens_S1, len(embedded_WH), torch.bool)
            attention = {"attention_mask": mask}
        (hidden_WH,) = self.read(embedded_WH[None], row.positions_W[None], attention)
        if self.pooling == "mean":
            return torch.stack([hidden_WH[start:end].mean(0) for start, end in pairwise(longer)])
        return hidden_WH[row.cu_seqlens_S1[1:] - 1]

    def padded(self, ids_ST: Tensor, mask_ST: Tensor, around: Surround) -> Tensor:
        """Vectors (S, H) of a padded batch."""
        if self.config._attn_implementation == PACKED:
            raise UserError(
                "model.attention = packed: it takes packed rows and this is a padded batch: "
                "pass boundaries, or load the LLM with 'sdpa'."
            )
        batch = surround_padded(ids_ST, mask_ST.long(), around.prefix, around.suffix, after=self.num_start)
        embedded_SUH = self.embed(batch.source_BU, around.rows_RH)
        attention = {"attention_mask": batch.mask_BU}
        hidden_SUH = self.read(embedded_SUH, batch.positions_BU, attention)
        if self.pooling == "mean":
            real_SU1 = batch.mask_BU[:, :, None] != 0
            return hidden_SUH.masked_fill(~real_SU1, 0).sum(1) / real_SU1.sum(1)
        column_U = torch.arange(hidden_SUH.shape[1], device=ids_ST.device)
        last_S = (batch.mask_BU * column_U).argmax(1)
        return hidden_SUH[torch.arange(len(last_S), device=ids_ST.device), last_S]

    def embed(self, source: Tensor, rows_RH: Tensor) -> Tensor:
        table: Any = self.llm.get_input_embeddings()  # type: ignore[operator]
        return soft_tokens(source, table, rows_RH)

    def read(self, embedded_SUH: Tensor, positions_SU: Tensor, attention: dict[str, Any]) -> Tensor:
        """The LLM's last hidden states (eq. 2)."""
        output = self.llm(inputs_embeds=embedded_SUH, position_ids=positions_SU, use_cache=False, **attention)
        hidden_SUH: Tensor = output.last_hidden_state
        return hidden_SUH


def check_parts(
    prefix: MFormer | Tensor | None, pooling: Pooling, suffix_H: Tensor | None, eos: int | None
) -> None:
    """Raises UserError unless the parts make something that can be trained."""
    if pooling == "suffix" and suffix_H is None:
        raise UserError("pooling = suffix: it starts at the mean token embedding, pass it as suffix_H.")
    if pooling == "eos" and eos is None:
        raise UserError("pooling = eos: it reads the output at the end token, pass its id as eos.")
    if pooling != "suffix" and prefix is None:
        raise UserError(
            f"pooling = {pooling}: without a prefix nothing is left to train: "
            "keep a prefix, or set pooling to suffix."
        )
