"""Packed rows of masked samples: the stream of blank infilling.

Shapes: S samples of a row, T tokens of the row.

The stream packs texts by their own lengths; masks add two tokens a span (a tenth of a text on average) and
are drawn when a row is made. What is masked depends on the seed, the epoch and the sample alone, so a resumed
epoch goes on with the same masks, on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from recloom.data_shards.masking import Masked, MaskIds, blank, mask, mask_rng
from recloom.data_shards.spans import MaskSettings, TokenSpan, sentence_spans
from recloom.data_shards.stream import IGNORE, PackedRow


class RecordSource(Protocol):
    """What rows are made of: samples by number, as a `ShardReader` gives them."""

    def ids(self, index: int) -> np.ndarray: ...

    def record(self, index: int) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class BlankRow(PackedRow):
    """Masked texts laid end to end.

    `position_ids_T` are the inter ids, `labels_T` the targets where they are predicted: not shifted.
    `intra_T` int64; `num_a_S` int64: how many tokens of each text are part A.
    """

    intra_T: torch.Tensor
    num_a_S: torch.Tensor


@dataclass(frozen=True)
class BodyText:
    """A sample without its start and end tokens: what is masked.

    answer: the answer's tokens. entity_spans: disjoint, in order.
    """

    ids_T: np.ndarray
    entity_spans: list[TokenSpan]
    answer: TokenSpan


def body_text(source: RecordSource, index: int, num_prefix: int) -> BodyText:
    """A sample of the shards; one with an answer ends with an end token, which [END] stands for here."""
    record, ids_T = source.record(index), source.ids(index)
    end = len(ids_T) - 1
    spans = joined_spans([(s - num_prefix, e - num_prefix) for s, e, *_ in record["entity_spans"]])
    return BodyText(ids_T[num_prefix:end], spans, (record["num_prompt"] - num_prefix, end - num_prefix))


def joined_spans(spans: Sequence[TokenSpan]) -> list[TokenSpan]:
    """Entities that share a token become one unit: neither can be masked without the other."""
    found: list[TokenSpan] = []
    for start, end in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def behind_prefix(masked: Masked, prefix_ids: Sequence[int]) -> Masked:
    """With a start token before part A, which is never masked."""
    count = len(prefix_ids)
    nothing = np.zeros(count, dtype=np.int64)
    return replace(
        masked,
        ids_T=np.concatenate([np.asarray(prefix_ids, dtype=np.int64), masked.ids_T]),
        targets_T=np.concatenate([nothing + IGNORE, masked.targets_T]),
        inter_T=np.concatenate([np.arange(count), masked.inter_T + count]),
        intra_T=np.concatenate([nothing, masked.intra_T]),
        num_a=masked.num_a + count,
        spans=tuple((start + count, end + count) for start, end in masked.spans),
    )


class BlankRows:
    """Makes the rows of a stream.

    Args:
        answer_share: probability that a sample's one blank is its answer, at the document level; else the
            three levels mask the whole text.
        token_texts: what each token id spells, see `spans.token_texts`.
        prefix_ids: what the renderer puts before a text.
    """

    def __init__(
        self,
        source: RecordSource,
        settings: MaskSettings,
        answer_share: float,
        ids: MaskIds,
        token_texts: Sequence[str],
        prefix_ids: Sequence[int],
        seed: int,
    ) -> None:
        self._source, self._settings, self._ids = source, settings, ids
        self._answer_share, self._texts = answer_share, token_texts
        self._prefix_ids, self._seed = list(prefix_ids), seed

    def __call__(self, epoch: int, indices: Sequence[int]) -> BlankRow:
        """The row of these samples in an epoch; no samples give one token without a loss."""
        masked = [self.masked(epoch, index) for index in indices] or [EMPTY]
        lengths = [len(text.ids_T) for text in masked]

        def joined(name: str) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([getattr(text, name) for text in masked]))

        return BlankRow(
            ids_T=joined("ids_T"),
            position_ids_T=joined("inter_T"),
            labels_T=joined("targets_T"),
            sample_indices=list(indices),
            boundaries=torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32),
            intra_T=joined("intra_T"),
            num_a_S=torch.tensor([text.num_a for text in masked]),
        )

    def masked(self, epoch: int, index: int) -> Masked:
        """A sample with the blanks of an epoch."""
        rng = mask_rng(self._seed, epoch, index)
        body = body_text(self._source, index, len(self._prefix_ids))
        if rng.random() < self._answer_share:
            drawn = blank(body.ids_T, body.entity_spans, [body.answer], self._settings, self._ids, "document")
        else:
            sentences = sentence_spans([self._texts[id] for id in body.ids_T.tolist()], body.entity_spans)
            drawn = mask(body.ids_T, body.entity_spans, sentences, self._settings, self._ids, rng)
        return behind_prefix(drawn, self._prefix_ids)


NOTHING = np.zeros(1, dtype=np.int64)
EMPTY = Masked(NOTHING, NOTHING + IGNORE, NOTHING, NOTHING, num_a=1, level="document", spans=())
