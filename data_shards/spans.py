"""Which stretches of a text become blanks: its units, its sentences, and the spans of the three levels.

Shapes: T tokens, U units, E entities. A span is (first token, last token + 1). Method: RecSysLLM (arXiv
2308.10837), training phase; GLM (arXiv 2103.10360), section 2.1, for the levels and span lengths.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

Level: TypeAlias = Literal["entity", "sentence", "document"]
TokenSpan: TypeAlias = tuple[int, int]
LEVELS: tuple[Level, ...] = ("entity", "sentence", "document")

# A sentence ends at a line end, or at . ! ? before white space; the white space belongs to it.
SENTENCE_END = re.compile(r"\S\s*\n\s*|[.!?]\s+")
# How byte-level and SentencePiece vocabularies spell white space.
SPELLINGS = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r"})


class MaskSettings(BaseModel):
    """Settings of blank infilling; the defaults are the paper's, and GLM's where it is silent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mixture: tuple[float, float, float] = Field(
        default=(0.5, 0.2, 0.3), description="Probabilities of the levels entity, sentence, document."
    )
    entity_share: float = Field(
        default=0.15,
        gt=0,
        le=0.4,
        description="Share of a text's tokens that the entity level masks; spans keep a visible unit between "
        "them, so much more than 0.4 can't be reached.",
    )
    sentence_share: float = Field(
        default=0.15, gt=0, le=1, description="Share of a text's tokens that the sentence level masks."
    )
    document_min: float = Field(
        default=0.5, gt=0, le=1, description="Shortest span of the document level, as a share of the text."
    )
    document_max: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Longest span of the document level, before it takes whole units.",
    )
    mean_span: float = Field(
        default=3.0, ge=1, description="Entity level: Poisson mean of a span's length, in units."
    )
    max_span_tokens: int = Field(
        default=40,
        ge=1,
        description="Entity level: longest span, in tokens; an entity that is longer is a span of its own.",
    )
    units: Literal["entity", "token"] = Field(
        default="entity", description="token forgets the entities: spans and intra ids as in GLM (ablation)."
    )
    order: Literal["chronological", "permuted"] = Field(
        default="chronological", description="Order of the spans in part B; GLM permutes them (ablation)."
    )
    positions: Literal["2d", "1d"] = Field(
        default="2d", description="1d: inter ids run on through part B, intra ids are 0 (ablation)."
    )

    @model_validator(mode="after")
    def check_together(self) -> MaskSettings:
        if min(self.mixture) < 0 or not math.isclose(sum(self.mixture), 1):
            raise ValueError(f"mixture = {list(self.mixture)}: three shares that add up to 1 are needed")
        if self.document_min > self.document_max:
            raise ValueError("document_min is above document_max: swap them")
        return self


@dataclass(frozen=True)
class Units:
    """A text cut into what is masked whole: an entity, or one token outside of entities.

    `bounds_U` int64 (U + 1,): first tokens of the units, and T. `is_entity_U` bool (U,).
    """

    bounds_U: np.ndarray
    is_entity_U: np.ndarray

    def rank_T(self) -> np.ndarray:
        """Place of each token in its unit, from 1."""
        lengths_U = np.diff(self.bounds_U)
        return np.arange(self.bounds_U[-1]) - np.repeat(self.bounds_U[:-1], lengths_U) + 1

    def is_entity_T(self) -> np.ndarray:
        """Whether a token belongs to an entity."""
        return np.repeat(self.is_entity_U, np.diff(self.bounds_U))


def find_units(num_tokens: int, entity_spans: Sequence[Sequence[Any]]) -> Units:
    """Units of a text of T tokens.

    Of each entity span only start and end are read, so `Rendered.entity_spans` serves as it is. Raises
    ValueError for spans that are empty, unordered, overlapping or outside of the text, and for no text.
    """
    if num_tokens < 1:
        raise ValueError("a text without tokens has nothing to mask: leave it out.")
    check_spans(entity_spans, num_tokens, "entity span")
    is_start_T = np.ones(num_tokens, dtype=bool)
    starts_E = [int(span[0]) for span in entity_spans]
    for start, end, *_ in entity_spans:
        is_start_T[start + 1 : end] = False
    bounds_U = np.append(np.flatnonzero(is_start_T), num_tokens)
    return Units(bounds_U, np.isin(bounds_U[:-1], starts_E))


def check_spans(spans: Sequence[Sequence[Any]], num_tokens: int, name: str) -> None:
    """Raises ValueError unless spans are non-empty, in order, disjoint and within the text."""
    before = 0
    for start, end, *_ in spans:
        if not before <= start < end <= num_tokens:
            raise ValueError(
                f"{name} ({start}, {end}) of a text of {num_tokens} tokens: spans must hold a token, be in "
                f"order and not overlap, and the one before ends at {before}."
            )
        before = end


def check_whole_units(spans: Sequence[TokenSpan], units: Units, name: str) -> None:
    """Raises ValueError for a span that cuts a unit."""
    is_whole_N = np.isin(np.asarray(spans, dtype=np.int64).reshape(-1, 2), units.bounds_U).all(axis=1)
    if not is_whole_N.all():
        raise ValueError(
            f"{name} {tuple(spans[int(is_whole_N.argmin())])} cuts an entity: move its ends to the entity's."
        )


def token_texts(tokens: Sequence[str]) -> list[str]:
    """Spellings in a vocabulary (byte-level or SentencePiece) with real white space, for `sentence_spans`."""
    return [token.translate(SPELLINGS).replace("<0x0A>", "\n") for token in tokens]


def sentence_spans(texts_T: Sequence[str], entity_spans: Sequence[Sequence[Any]]) -> list[TokenSpan]:
    """The sentences of a text, in order and without gaps; T pieces of text that joined give the text.

    A sentence ends behind a line end, or behind `.`, `!` or `?` before white space, but never inside an
    entity. A token over an end belongs to the sentence of its first visible character.
    """
    ends_T = np.cumsum([len(text) for text in texts_T])
    matches = list(SENTENCE_END.finditer("".join(texts_T)))
    marks = np.searchsorted(ends_T, [match.start() for match in matches], side="right").tolist()
    firsts = np.searchsorted(ends_T, [match.end() for match in matches], side="right").tolist()
    inside = set(chain.from_iterable(range(start + 1, end) for start, end, *_ in entity_spans))
    cuts = {first for mark, first in zip(marks, firsts, strict=True) if mark < first} - inside
    return list(pairwise(sorted(cuts | {0, len(texts_T)})))


def draw_spans(
    level: Level,
    units: Units,
    sentences: Sequence[TokenSpan],
    settings: MaskSettings,
    rng: np.random.Generator,
) -> list[TokenSpan]:
    """Random spans of a level, at least one, disjoint, in text order.

    The entity level needs two units at least. Raises ValueError for the sentence level without sentences.
    """
    if level == "entity":
        return sorted(entity_level(units, settings, rng))
    if level == "sentence":
        return sorted(sentence_level(sentences, settings.sentence_share * int(units.bounds_U[-1]), rng))
    return [document_level(units, settings, rng)]


def entity_level(units: Units, settings: MaskSettings, rng: np.random.Generator) -> list[TokenSpan]:
    """Spans of Poisson many units, no two of them side by side.

    The text is cut into such blocks and they are taken in random order until the share is used up; the unit
    that crosses it is taken with the probability that makes the expected share exact. The very first unit
    is taken in any case: only in short texts does that exceed the share. Two blocks at least, of which
    neighbours are never both taken, leave something visible.
    """
    bounds = units.bounds_U.tolist()
    blocks = cut_blocks(units, settings, rng)
    budget = settings.entity_share * bounds[-1]
    is_taken = np.zeros(len(blocks) + 2, dtype=bool)  # one more at each end: blocks k - 1, k + 1 always exist
    spans: list[TokenSpan] = []
    for k in rng.permutation(len(blocks)).tolist():
        if is_taken[k] or is_taken[k + 2]:
            continue
        first, last = blocks[k]
        stop = first
        while stop < last and (not spans and stop == first or affords(bounds, stop, budget, rng)):
            budget -= bounds[stop + 1] - bounds[stop]
            stop += 1
        if stop > first:
            is_taken[k + 1] = True
            spans.append((bounds[first], bounds[stop]))
        if stop < last or budget <= 0:
            break
    return spans


def affords(bounds: list[int], unit: int, budget: float, rng: np.random.Generator) -> bool:
    """Whether a unit is taken: always if the budget covers it, else with the covered part's probability."""
    covered = max(budget, 0) / (bounds[unit + 1] - bounds[unit])
    return covered >= 1 or rng.random() < covered


def cut_blocks(units: Units, settings: MaskSettings, rng: np.random.Generator) -> list[TokenSpan]:
    """The text as blocks (first unit, last unit + 1) of Poisson many units, at least one and never all."""
    bounds_U = units.bounds_U
    num_units = len(bounds_U) - 1
    # Units that fit behind each one, for a block's limit in tokens
    limits = np.searchsorted(bounds_U, bounds_U[:-1] + settings.max_span_tokens, side="right") - 1
    blocks: list[TokenSpan] = []
    first = 0
    while first < num_units:
        size = min(positive_poisson(settings.mean_span, rng), num_units - 1)
        last = max(first + 1, min(first + size, int(limits[first])))
        blocks.append((first, last))
        first = last
    return blocks


def positive_poisson(mean: float, rng: np.random.Generator) -> int:
    """A Poisson number given that it is not 0."""
    while not (number := int(rng.poisson(mean))):
        pass
    return number


def sentence_level(
    sentences: Sequence[TokenSpan], budget: float, rng: np.random.Generator
) -> list[TokenSpan]:
    """Whole sentences in random order until `budget` tokens are used up, the last one as in `entity_level`.

    Neighbours stay spans of their own, so two masks may stand side by side. One sentence may be the text.
    """
    if not sentences:
        raise ValueError("the sentence level needs the text's sentences: give at least one.")
    spans: list[TokenSpan] = []
    for k in rng.permutation(len(sentences)).tolist():
        start, end = sentences[k]
        if spans and not affords([start, end], 0, budget, rng):
            break
        spans.append((start, end))
        budget -= end - start
    return spans


def document_level(units: Units, settings: MaskSettings, rng: np.random.Generator) -> TokenSpan:
    """One span of uniform length at a uniform place, widened to whole units: never below the minimum."""
    num_tokens = int(units.bounds_U[-1])
    shortest = math.ceil(settings.document_min * num_tokens)
    longest = max(shortest, math.floor(settings.document_max * num_tokens))
    length = int(rng.integers(shortest, longest, endpoint=True))
    start = int(rng.integers(0, num_tokens - length, endpoint=True))
    first = np.searchsorted(units.bounds_U, start, side="right") - 1
    last = np.searchsorted(units.bounds_U, start + length, side="left")
    return int(units.bounds_U[first]), int(units.bounds_U[last])
