"""Blank infilling on a decoder-only language model (RecSysLLM, training phase; GLM, arXiv 2103.10360, section
2).

The language model stays as it is. Beside it stand two small tables: `marks`, the rows of [M], [sM], [gM],
[START] and [END], and `intra`, one row for each intra id, added to the token embeddings and zero at first, so
that a text without blanks reads at step 0 as it did before. Inter ids are the model's rotary positions. The
rows are tables of their own, and not new rows of the model's embedding, because a partitioned embedding
(ZeRO-3) can't be resized safely, and because low-rank updates leave the embedding alone.

Shapes: B = 1 row of T tokens in training, R rows of W tokens in generation, A targets, V words of the model,
H. Ids from V on are marks; logits have V + 5 columns, of which the last, [END], is the only mark ever
predicted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from recloom.data_shards.artifacts import atomic_write_bytes, atomic_write_json
from recloom.data_shards.errors import UserError
from recloom.data_shards.masking import MaskIds
from recloom.trainer.systems.recsysllm.attention import make_block_mask
from recloom.trainer.vocabulary_loss import (
    VocabularyShard,
    normaliser_and_target,
    shard_of,
    summed_cross_entropy,
)

MARKS = ("[M]", "[sM]", "[gM]", "[START]", "[END]")
TABLES, DESCRIPTION = "blanks.safetensors", "blanks.json"


def mask_ids(vocab_size: int) -> MaskIds:
    """The ids of the marks of a model with so many embedding rows."""
    return MaskIds(*range(vocab_size, vocab_size + len(MARKS)))


@dataclass(frozen=True)
class Sizes:
    """vocab_size: V. intra: rows of the intra table. rate: how many times faster than the model the tables
    learn (they are kept divided by it; AdamW's steps do not depend on a gradient's size)."""

    vocab_size: int
    hidden: int
    intra: int
    rate: float


class BlankInfiller(nn.Module):
    """A causal language model that fills blanks. What of `llm` requires a gradient is trained, and the
    tables.
    """

    def __init__(self, llm: Any, sizes: Sizes) -> None:
        super().__init__()
        self.llm, self.sizes = llm, sizes
        self.marks = nn.Embedding(len(MARKS), sizes.hidden)
        self.intra = nn.Embedding(sizes.intra, sizes.hidden)
        nn.init.zeros_(self.intra.weight)

    @property
    def config(self) -> Any:
        return self.llm.config

    @torch.no_grad()
    def start_marks(self, mean_H: Tensor, end_H: Tensor, scale: float, seed: int) -> None:
        """Marks begin near the mean token, apart from each other by noise; [START] and [END] at the end
        token,
        behind which and for which the model has learned to begin and to end a text."""
        noise_MH = torch.randn(len(MARKS), self.sizes.hidden, generator=torch.Generator().manual_seed(seed))
        rows_MH = mean_H + 0.5 * scale * noise_MH
        rows_MH[3:] = end_H
        self.marks.weight.copy_(rows_MH / self.sizes.rate)

    def forward(
        self,
        input_ids: Tensor,
        intra_ids: Tensor,
        position_ids: Tensor,
        logits_to_keep: Tensor,
        boundaries: list[int],
        num_a: list[int],
        targets_A: Tensor | None = None,
    ) -> Tensor:
        """Logits (A, V + 5) at the kept places of a packed row; with targets their summed loss."""
        places: dict[str, Any] = {"boundaries": boundaries, "num_a": num_a}
        if input_ids.is_cuda:
            places["block_mask"] = make_block_mask(boundaries, num_a, input_ids.device)
        hidden_BTH = self.llm.base_model(
            inputs_embeds=self.embed(input_ids, intra_ids),
            position_ids=position_ids,
            use_cache=False,
            **places,
        ).last_hidden_state
        hidden_AH = hidden_BTH[0, logits_to_keep]
        return self.logits(hidden_AH) if targets_A is None else self.loss(hidden_AH, targets_A)

    def loss(self, hidden_AH: Tensor, targets_A: Tensor) -> Tensor:
        """Summed cross-entropy, float32 scalar.

        The head runs once: ranks have different numbers of targets, and under ZeRO-3 all must call the same
        modules equally often.
        """
        shard = shard_of(self.llm.get_output_embeddings())
        if shard is not None:
            return self.divided_loss(hidden_AH, targets_A, shard)
        return summed_cross_entropy(self.logits(hidden_AH), targets_A, None)

    def divided_loss(self, hidden_AH: Tensor, targets_A: Tensor, shard: VocabularyShard) -> Tensor:
        """The same where each tensor-parallel rank has some of the words, and every rank the mark [END]."""
        words_AV = self.llm.get_output_embeddings()(hidden_AH)
        end_A = (hidden_AH @ self.end_row(hidden_AH).T)[:, 0].float()
        words_A, chosen_A = normaliser_and_target(words_AV, targets_A, shard)  # chosen: 0 at [END], no word
        is_end_A = targets_A == self.sizes.vocab_size + len(MARKS) - 1
        return (torch.logaddexp(words_A, end_A) - torch.where(is_end_A, end_A, chosen_A)).sum()

    def embed(self, input_ids: Tensor, intra_ids: Tensor) -> Tensor:
        """Token embeddings with the marks in their places and the intra rows added, (B, T, H)."""
        is_mark = (input_ids >= self.sizes.vocab_size)[..., None]
        words = self.llm.get_input_embeddings()(input_ids.clamp(max=self.sizes.vocab_size - 1))
        marks = self.marks((input_ids - self.sizes.vocab_size).clamp(min=0)) * self.sizes.rate
        rows: Tensor = torch.where(is_mark, marks.to(words.dtype), words)
        return rows + (self.intra(intra_ids) * self.sizes.rate).to(words.dtype)

    def logits(self, hidden_AH: Tensor) -> Tensor:
        """Logits (A, V + 5); what is never predicted has -inf."""
        words_AV: Tensor = self.llm.get_output_embeddings()(hidden_AH)
        never_AM = words_AV.new_full((len(words_AV), len(MARKS) - 1), -torch.inf)
        return torch.cat([words_AV, never_AM, hidden_AH @ self.end_row(hidden_AH).T], dim=1)

    def end_row(self, hidden_AH: Tensor) -> Tensor:
        """The row of [END], (1, H)."""
        last = torch.tensor([len(MARKS) - 1], device=hidden_AH.device)
        row_1H: Tensor = self.marks(last) * self.sizes.rate
        return row_1H.to(hidden_AH.dtype)


def save_tables(weights: dict[str, Tensor], sizes: Sizes, folder: Path) -> None:
    """The two tables, by the names of `BlankInfiller`; the caller writes the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: weights[f"{name}.weight"].cpu().contiguous() for name in ("marks", "intra")}
    atomic_write_bytes(folder / TABLES, safetensors.torch.save(tables))
    atomic_write_json(folder / DESCRIPTION, vars(sizes))


def load_tables(llm: Any, folder: Path) -> BlankInfiller:
    """A model with the tables of a folder around it, in evaluation mode.

    Raises UserError for tables of another model.
    """
    sizes = Sizes(**json.loads((folder / DESCRIPTION).read_text()))
    words = llm.get_input_embeddings()
    if (words.num_embeddings, words.embedding_dim) != (sizes.vocab_size, sizes.hidden):
        raise UserError(
            f"{folder}: its tables are of a model of {sizes.vocab_size} x {sizes.hidden}, this one is "
            f"{words.num_embeddings} x {words.embedding_dim}: name the model that was trained."
        )
    network = BlankInfiller(llm, sizes)
    tables = safetensors.torch.load_file(folder / TABLES)
    for name, table in tables.items():
        getattr(network, name).weight.data.copy_(table)
    return network.to(llm.device).eval()
