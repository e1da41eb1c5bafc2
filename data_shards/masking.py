"""Autoregressive blank infilling with entities (RecSysLLM, arXiv 2308.10837, training phase).

Shapes: T tokens, first of a text, then of its masked form; S samples of a row.

A masked text is part A, the text with one mask token for each span, and part B, the spans one after another,
each with [START] before it. Part A is seen by all, part B from left to right. Nothing here knows a model.

Labels are `targets_T`: position t's target is what position t predicts. They are not shifted, unlike the
labels of `stream.py`, because what [START] predicts does not stand behind [END], which is never an input.

Two position ids (2D). Inter id: place in part A, from 0; [START] and a span's tokens have their mask's.
Intra id in part A: 1, 2, ... inside an entity, else 0. Intra id in part B: 1, 2, ... inside each unit (an
entity or a plain token), where [START] counts as the head of the span's first unit: a span of x1 x2 x3 (an
entity), x4 (plain) and x5 x6 (an entity) has 1 | 2 3 4 | 1 | 1 2. Later units have no [START] of their own to
count, and a restart at 1 is the paper's rule at inference: so training and generation number alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recloom.data_shards.spans import (
    LEVELS,
    Level,
    MaskSettings,
    TokenSpan,
    Units,
    check_spans,
    check_whole_units,
    draw_spans,
    find_units,
)
from recloom.data_shards.stream import IGNORE

MASK_STREAM = 7  # keeps masks apart from the stream's draws, which numpy seeds with [seed, epoch, window, 0]


@dataclass(frozen=True)
class MaskIds:
    """Token ids of [M] (entity level), [sM] (sentence level), [gM] (document level), [START] and [END]."""

    entity: int
    sentence: int
    document: int
    start: int
    end: int

    def of(self, level: Level) -> int:
        """The mask token of a level."""
        return {"entity": self.entity, "sentence": self.sentence, "document": self.document}[level]


@dataclass(frozen=True)
class Masked:
    """A text with blanks.

    `ids_T` (input), `targets_T` (-100 on part A), `inter_T`, `intra_T`: int64 (T,), where T is the text's
    length + 2 for each span. The first `num_a` are part A. `spans`: the text's token ranges, in the order of
    part B.
    """

    ids_T: np.ndarray
    targets_T: np.ndarray
    inter_T: np.ndarray
    intra_T: np.ndarray
    num_a: int
    level: Level
    spans: tuple[TokenSpan, ...]


def mask_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of a sample's masks in an epoch: a resumed epoch draws the same ones."""
    return np.random.default_rng([seed, epoch, index, MASK_STREAM])


def mask(
    ids_T: np.ndarray,
    entity_spans: Sequence[Sequence[Any]],
    sentences: Sequence[TokenSpan],
    settings: MaskSettings,
    ids: MaskIds,
    rng: np.random.Generator,
    level: Level | None = None,
) -> Masked:
    """Draw the blanks of a text and fill them into part B.

    ids_T: integers (T,), the text without start and end token. entity_spans: as in `Rendered`. sentences: as
    from `sentence_spans`. level: None draws it from the mixture. A text of a single unit can't show anything
    beside a blank: the entity level becomes the document level there.
    Raises ValueError for bad spans (see `find_units`), an empty text, sentences that cut an entity.
    """
    units = text_units(len(ids_T), entity_spans, settings)
    check_spans(sentences, len(ids_T), "sentence")
    check_whole_units(sentences, units, "sentence")
    if level is None:
        level = LEVELS[int(rng.choice(len(LEVELS), p=settings.mixture))]
    if level == "entity" and len(units.is_entity_U) == 1:
        level = "document"
    spans = draw_spans(level, units, sentences, settings, rng)
    if settings.order == "permuted":
        spans = [spans[k] for k in rng.permutation(len(spans)).tolist()]
    return fill_blanks(ids_T, units, spans, settings, ids, level)


def blank(
    ids_T: np.ndarray,
    entity_spans: Sequence[Sequence[Any]],
    spans: Sequence[TokenSpan],
    settings: MaskSettings,
    ids: MaskIds,
    level: Level,
) -> Masked:
    """`mask` with given spans, in part B's order: an answer to learn, say, is one span of the document level.

    Raises ValueError for spans that are empty, overlap, leave the text or cut an entity, and for none.
    """
    units = text_units(len(ids_T), entity_spans, settings)
    if not spans:
        raise ValueError("there is no span to blank: give at least one.")
    check_spans(sorted(spans), len(ids_T), "span")
    check_whole_units(spans, units, "span")
    return fill_blanks(ids_T, units, spans, settings, ids, level)


def text_units(num_tokens: int, entity_spans: Sequence[Sequence[Any]], settings: MaskSettings) -> Units:
    """The units that the settings ask for; bad entity spans are an error in any case."""
    units = find_units(num_tokens, entity_spans)
    return units if settings.units == "entity" else find_units(num_tokens, [])


def fill_blanks(
    ids_T: np.ndarray,
    units: Units,
    spans: Sequence[TokenSpan],
    settings: MaskSettings,
    ids: MaskIds,
    level: Level,
) -> Masked:
    """Parts A and B with their positions; `spans` are checked."""
    starts = [start for start, _ in spans]
    text_T = np.array(ids_T, dtype=np.int64)
    rank_T = units.rank_T()
    intra_a_T = np.where(units.is_entity_T(), rank_T, 0)
    text_T[starts], intra_a_T[starts] = ids.of(level), 0
    is_shown_T = np.ones(len(text_T), dtype=bool)  # the first token of a span stands for its mask
    for start, end in spans:
        is_shown_T[start + 1 : end] = False
    place_T = np.cumsum(is_shown_T) - 1
    num_a = int(is_shown_T.sum())
    parts = [np.asarray(ids_T[start:end], dtype=np.int64) for start, end in spans]
    inputs = [np.concatenate([[ids.start], part]) for part in parts]
    targets = [np.concatenate([part, [ids.end]]) for part in parts]
    inters = [np.full(end - start + 1, place_T[start]) for start, end in spans]
    intras = [span_intra(units, rank_T, span, settings) for span in spans]
    is_2d = settings.positions == "2d"
    inter_T = np.concatenate([np.arange(num_a), *inters])
    intra_T = np.concatenate([intra_a_T[is_shown_T], *intras])
    return Masked(
        ids_T=np.concatenate([text_T[is_shown_T], *inputs]),
        targets_T=np.concatenate([np.full(num_a, IGNORE), *targets]),
        inter_T=inter_T if is_2d else np.arange(len(inter_T)),
        intra_T=intra_T if is_2d else np.zeros_like(intra_T),
        num_a=num_a,
        level=level,
        spans=tuple(spans),
    )


def span_intra(units: Units, rank_T: np.ndarray, span: TokenSpan, settings: MaskSettings) -> np.ndarray:
    """Intra ids of [START] and a span's tokens; where units are tokens they count through, as in GLM."""
    start, end = span
    if settings.units == "token":
        return np.arange(1, end - start + 2)
    first_end = units.bounds_U[np.searchsorted(units.bounds_U, start, side="right")]
    has_start_before = np.arange(start, end) < first_end
    return np.concatenate([[1], rank_T[start:end] + has_start_before])


def unmask(masked: Masked, ids: MaskIds) -> np.ndarray:
    """The text, int64: part A with part B's spans in place of its masks.

    Raises ValueError where a mask token or [START] does not stand where the spans say.
    """
    lengths = [end - start + 1 for start, end in masked.spans]
    part_a, *parts = np.split(masked.ids_T, masked.num_a + np.cumsum([0, *lengths[:-1]]))
    order = sorted(range(len(parts)), key=lambda k: masked.spans[k])
    # A mask lies before its span's start by what the spans before it lost.
    lost = np.cumsum([0, *(lengths[k] - 2 for k in order)])
    blanks = [masked.spans[k][0] - int(lost[n]) for n, k in enumerate(order)]
    is_mask = part_a[blanks] == ids.of(masked.level)
    if not is_mask.all() or any(part[0] != ids.start for part in parts):
        raise ValueError("mask and start tokens do not stand where the spans say: these are other ids.")
    pieces: list[np.ndarray] = []
    for k, before, at in zip(order, [0, *(place + 1 for place in blanks)], blanks, strict=False):
        pieces += [part_a[before:at], parts[k][1:]]
    return np.concatenate([*pieces, part_a[blanks[-1] + 1 :]])


def attention_mask(num_a: int, length: int) -> torch.Tensor:
    """Who sees whom in a masked text, bool (T, T), True = row attends to column (PyTorch's SDPA).

    All see the `num_a` tokens of part A; a token of part B also sees itself and part B before it.
    """
    return packed_attention_mask(torch.tensor([0, length]), torch.tensor([num_a]), length)


def packed_attention_mask(boundaries: torch.Tensor, num_a_S: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """`attention_mask` of masked texts in a row, bool (T, T): block-diagonal.

    boundaries: integers (S + 1,), the samples' starts and the last end; tokens behind it (padding) form one
    more, causal block, so that no row of the mask is empty.
    """
    position_T = torch.arange(num_tokens, device=boundaries.device)
    block_T = torch.searchsorted(boundaries.long(), position_T, right=True) - 1
    # Where each block's part A ends; the padding has none.
    a_ends = torch.cat([boundaries[:-1] + num_a_S, boundaries[-1:]])
    is_a_T = position_T < a_ends[block_T]
    same_TT = block_T[:, None] == block_T[None, :]
    return same_TT & (is_a_T[None, :] | (position_T[:, None] >= position_T[None, :]))
