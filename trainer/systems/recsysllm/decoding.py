"""Blanks filled token by token, with a cache (RecSysLLM, inference phase).

Part A is read in one pass, in which all see all; a span's tokens follow one by one and see all before them.
`Decoder` keeps the cache of a batch. Over it, `fill_blanks` writes free text with dynamic positions, and
`item_search` gives the scorer of a beam search among the catalogue's items.

Shapes: R rows (questions, or beams of them), W columns of one pass, X columns so far, H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recloom.data_shards.masking import Masked, MaskIds
from recloom.data_shards.spans import MaskSettings
from recloom.kernels.beam_search import Generated, Run, search_items
from recloom.kernels.generate import ModelScorer
from recloom.kernels.token_trie import TokenTrie
from recloom.kernels.trie_restrictions import Items, Restrictions, restrict
from recloom.trainer.systems.recsysllm.network import BlankInfiller
from recloom.trainer.systems.recsysllm.positions import IntraCounter


@dataclass(frozen=True)
class Question:
    """Part A of a masked text: ids, inter and intra ids of its tokens.

    blanks: the inter ids of the masks to fill, in part B's order. settings: those of the training's masks,
    whose ablations have other positions.
    """

    ids: list[int]
    inter: list[int]
    intra: list[int]
    blanks: list[int]
    settings: MaskSettings

    @property
    def is_2d(self) -> bool:
        return self.settings.positions == "2d"

    @classmethod
    def of(cls, masked: Masked, settings: MaskSettings) -> Question:
        """What is seen of a masked text, and which blanks it has."""
        part = slice(masked.num_a)
        starts = np.cumsum([0, *(end - start + 1 for start, end in masked.spans[:-1])]) + masked.num_a
        return cls(
            masked.ids_T[part].tolist(),
            masked.inter_T[part].tolist(),
            masked.intra_T[part].tolist(),
            masked.inter_T[starts].tolist() if masked.spans else [],
            settings,
        )


@dataclass(frozen=True)
class Columns:
    """What one row brings into a pass: tokens and their two ids."""

    ids: list[int]
    inter: list[int]
    intra: list[int]


class Decoder:
    """The past of a batch of questions; row n of it is that of row n of the last pass.

    use_cache False reads all again in every pass: slow, and equal, which a test checks.
    """

    def __init__(self, network: BlankInfiller, use_cache: bool = True) -> None:
        self.network, self.use_cache = network, use_cache
        self.device = network.marks.weight.device
        self.cache: Any = None
        self.rows: list[Columns] = []  # only without a cache
        self.valid_RX = torch.zeros(0, 0, dtype=torch.bool, device=self.device)
        self.num_a_R = torch.zeros(0, dtype=torch.long, device=self.device)

    def select(self, rows: Sequence[int]) -> None:
        """Row n of the past becomes the old row rows[n]."""
        index_R = torch.tensor(rows, device=self.device)
        self.valid_RX, self.num_a_R = self.valid_RX[index_R], self.num_a_R[index_R]
        self.rows = [self.rows[row] for row in rows] if self.rows else []
        if self.cache is not None:
            self.cache.batch_select_indices(index_R)

    @torch.no_grad()
    def forward(self, rows: Sequence[Columns], num_a: Sequence[int] | None = None) -> Tensor:
        """Hidden states (R, W, H) of a pass. Shorter rows are padded on the right; a row may be empty.

        num_a: in the first pass, how many columns of each row are part A.
        """
        if num_a is not None:
            self.num_a_R = torch.tensor(num_a, device=self.device)
            self.valid_RX = torch.zeros(len(rows), 0, dtype=torch.bool, device=self.device)
        width = max(len(row.ids) for row in rows)
        ids_RW, inter_RW, intra_RW, new_RW = (self.padded(rows, name, width) for name in NAMES)
        num_past = self.valid_RX.shape[1]
        self.valid_RX = torch.cat([self.valid_RX, new_RW.bool()], 1)
        if not self.use_cache:
            return self.read_again(rows, width)
        out = self.network.llm.base_model(
            inputs_embeds=self.network.embed(ids_RW, intra_RW),
            position_ids=inter_RW,
            attention_mask=self.mask(num_past, width),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = out.past_key_values
        hidden_RWH: Tensor = out.last_hidden_state
        return hidden_RWH

    def padded(self, rows: Sequence[Columns], name: str, width: int) -> Tensor:
        """One of the rows' lists as (R, W); `new` tells tokens from padding."""
        lists = [[1] * len(row.ids) if name == "new" else getattr(row, name) for row in rows]
        filled = [values + [0] * (width - len(values)) for values in lists]
        return torch.tensor(filled, dtype=torch.long, device=self.device).reshape(len(rows), width)

    def mask(self, num_past: int, width: int) -> Tensor:
        """Who sees what, added to the scores, (R, 1, W, X): part A, and what lies before."""
        num_columns = num_past + width
        column_X = torch.arange(num_columns, device=self.device)
        place_W = num_past + torch.arange(width, device=self.device)
        is_a_RX = column_X[None] < self.num_a_R[:, None]
        sees_RWX = is_a_RX[:, None] | (column_X[None, None] <= place_W[None, :, None])
        # A padded place sees itself, so that no row of the softmax is empty.
        sees_RWX = (sees_RWX & self.valid_RX[:, None]) | (column_X[None, None] == place_W[None, :, None])
        dtype = self.network.llm.dtype
        nothing = torch.zeros(sees_RWX.shape, dtype=dtype, device=self.device)
        return nothing.masked_fill(~sees_RWX, torch.finfo(dtype).min)[:, None]

    def read_again(self, rows: Sequence[Columns], width: int) -> Tensor:
        """The same without a cache: every row's tokens so far in one pass, padded columns left out."""
        before = self.rows or [Columns([], [], [])] * len(rows)
        self.rows = [
            Columns(old.ids + new.ids, old.inter + new.inter, old.intra + new.intra)
            for old, new in zip(before, rows, strict=True)
        ]
        alone = Decoder(self.network)
        hidden_RXH = alone.forward(self.rows, self.num_a_R.tolist())
        out_RWH = hidden_RXH.new_zeros(len(rows), width, hidden_RXH.shape[2])
        for n, (all_of, new) in enumerate(zip(self.rows, rows, strict=True)):
            first, end = len(all_of.ids) - len(new.ids), len(all_of.ids)
            out_RWH[n, : end - first] = hidden_RXH[n, first:end]
        return out_RWH


NAMES = ("ids", "inter", "intra", "new")


@dataclass
class Filling:
    """The blanks of one question while they are filled."""

    question: Question
    pool: TokenTrie
    spans: list[list[int]] = field(default_factory=list)
    counter: IntraCounter | None = None
    written: int = 0  # tokens of part B, [START]s included

    @property
    def is_done(self) -> bool:
        return self.counter is None and len(self.spans) == len(self.question.blanks)

    def start(self, ids: MaskIds) -> Columns:
        """[START] of the next blank."""
        self.spans.append([])
        counts_on = self.question.settings.units == "token"
        self.counter = IntraCounter(self.pool, counts_on=counts_on)
        return self.columns(ids.start, 1)

    def take(self, token: int, ids: MaskIds, max_tokens: int) -> Columns:
        """What the next pass reads behind a token: the token but for [END], and where the span ends the next
        [START]."""
        assert self.counter is not None
        read = NO_COLUMNS
        if token != ids.end:
            self.spans[-1].append(token)
            read = self.columns(token, self.counter.next_id(token))
        if token == ids.end or len(self.spans[-1]) == max_tokens:
            self.counter = None
            return read if self.is_done else joined(read, self.start(ids))
        return read

    def columns(self, token: int, intra: int) -> Columns:
        question, self.written = self.question, self.written + 1
        if question.is_2d:
            return Columns([token], [question.blanks[len(self.spans) - 1]], [intra])
        return Columns([token], [len(question.ids) + self.written - 1], [0])


NO_COLUMNS = Columns([], [], [])


def fill_blanks(
    network: BlankInfiller,
    questions: Sequence[Question],
    pool: TokenTrie,
    ids: MaskIds,
    max_tokens: int,
    use_cache: bool = True,
) -> list[list[list[int]]]:
    """The most probable token at each step, for all blanks of each question: tokens without [END].

    A span that has max_tokens tokens ends there.
    """
    fillings = [Filling(question, pool) for question in questions]
    decoder = Decoder(network, use_cache)
    rows = [
        joined(question, filling.start(ids)) for question, filling in zip(questions, fillings, strict=True)
    ]
    hidden_RWH = decoder.forward(rows, [len(question.ids) for question in questions])
    alive = list(fillings)
    while alive:
        last_R = torch.tensor([len(row.ids) - 1 for row in rows], device=hidden_RWH.device)
        logits_RV = network.logits(hidden_RWH[torch.arange(len(rows), device=last_R.device), last_R])
        tokens = logits_RV.argmax(1).tolist()
        rows = [filling.take(token, ids, max_tokens) for filling, token in zip(alive, tokens, strict=True)]
        kept = [n for n, filling in enumerate(alive) if not filling.is_done]
        alive, rows = [alive[n] for n in kept], [rows[n] for n in kept]
        if alive:
            decoder.select(kept)
            hidden_RWH = decoder.forward(rows)
    return [filling.spans for filling in fillings]


def joined(first: Question | Columns, second: Columns) -> Columns:
    return Columns(first.ids + second.ids, first.inter + second.inter, first.intra + second.intra)


class InfillScorer(ModelScorer):
    """Scores beams of items in a question's one blank. An item is one entity, so its ids count on."""

    def __init__(
        self,
        network: BlankInfiller,
        questions: Sequence[Question],
        trie: TokenTrie,
        keep: int,
        restrictions: Restrictions | None,
    ) -> None:
        self.trie, self.keep = trie, keep
        self.restrictions, self.renormalise = restrictions, False
        self.head, self.device = network.logits, network.marks.weight.device
        self.questions = questions
        self.decoder = Decoder(network)
        self.num_passes = 0

    def select(self, rows: list[int]) -> None:
        if self.num_passes:
            self.decoder.select(rows)

    def forward(self, runs: Sequence[Run]) -> Tensor:
        rows = [self.columns(run) for run in runs]
        first = [len(self.questions[run.request].ids) for run in runs]
        hidden_RWH = self.decoder.forward(rows, None if self.num_passes else first)
        self.num_passes += 1
        return hidden_RWH

    def columns(self, run: Run) -> Columns:
        """A run's tokens with their ids; with the first pass comes the prompt: part A and [START]."""
        question = self.questions[run.request]
        num_a, first = len(question.ids), len(run.past)
        places = range(first, first + len(run.tokens))
        ids = [question.ids[x] if x < num_a else run.tokens[x - first] for x in places]
        blank = question.blanks[0]
        if not question.is_2d:
            return Columns(ids, list(places), [0] * len(ids))
        inter = [question.inter[x] if x < num_a else blank for x in places]
        intra = [question.intra[x] if x < num_a else x - num_a + 1 for x in places]
        return Columns(ids, inter, intra)


def find_items(
    network: BlankInfiller,
    questions: Sequence[Question],
    trie: TokenTrie,
    ids: MaskIds,
    num_beams: int,
    k: int,
    allowed: Sequence[Items] | None = None,
) -> list[Generated]:
    """The k best items of the catalogue for each question's blank, with their log-probabilities.

    trie: of items' tokens, closed by [END]. allowed: the candidates of each question.
    """
    limits = restrict(trie, allowed=allowed, excluded=None) if allowed is not None else None
    prompts = [[*question.ids, ids.start] for question in questions]
    keep = 2 * num_beams
    scorer = InfillScorer(network, questions, trie, keep, limits)
    return search_items(scorer, prompts, trie, num_beams, k, limits)
