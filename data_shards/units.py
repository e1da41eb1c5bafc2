"""Units: pieces of samples that are tokenised once and laid end to end.

Shapes: U units, E entity spans, K slots.

Two units may stand side by side where the renderer would cut anyway: at a slot, or after a newline between
two visible characters (`renderer.CUT`). What a unit offers at its two ends is a number, and two ends fit
where theirs sum to 2 or more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recloom.data_shards.ragged import Ragged, end_to_end, joined
from recloom.data_shards.renderer import Encoded, Rendered, Renderer
from recloom.data_shards.samples import Segment, Slot, sample_text

NOT_CUT, LINE, SLOT = 0, 1, 2
FITS = 2
OPENS = re.compile(r"[^\s/]")
CLOSES = re.compile(r"\S\n\Z")
KINDS = ("item", "attribute", "user", "history", "candidate", "prefix", "suffix")
NO_ID = -1


@dataclass(frozen=True)
class Units:
    """`ids` int32. `spans` rows (start, end, kind, id) and `slots` rows (position, kind, id), int64, counted
    from a unit's first token; a kind is its place in KINDS, NO_ID stands for None. `left_U` and `right_U`:
    what the ends offer."""

    ids: Ragged
    spans: Ragged
    slots: Ragged
    left_U: np.ndarray
    right_U: np.ndarray

    def __len__(self) -> int:
        return len(self.left_U)


def make_units(renderer: Renderer, parts: Iterable[Sequence[Segment]], is_start: bool) -> Units:
    """Tokenise units; is_start: nothing stands before them in a sequence."""
    encoded: list[Encoded] = []
    ends: list[tuple[int, int]] = []
    for segments in parts:
        encoded.append(renderer.encode_part(segments, is_start))
        ends.append((left_end(segments), right_end(segments)))
    left_U, right_U = np.asarray(ends, dtype=np.int8).reshape(-1, 2).T
    return Units(*as_arrays(encoded), left_U, right_U)


def control_unit(ids: Sequence[int]) -> Units:
    """Tokens that are no text: anything may stand beside them."""
    encoded = [Encoded(np.asarray(ids, dtype=np.int32), [], [])]
    end_U = np.full(1, SLOT, np.int8)
    return Units(*as_arrays(encoded), end_U, end_U)


def join_units(parts: Sequence[Units]) -> Units:
    """All units, numbered one part behind the other."""
    if len(parts) == 1:
        return parts[0]
    return Units(
        joined([part.ids for part in parts]),
        joined([part.spans for part in parts]),
        joined([part.slots for part in parts]),
        np.concatenate([part.left_U for part in parts]),
        np.concatenate([part.right_U for part in parts]),
    )


def as_arrays(encoded: Sequence[Encoded | Rendered]) -> tuple[Ragged, Ragged, Ragged]:
    """Ids, entity spans and slots of several pieces."""
    spans = [piece.spans if isinstance(piece, Encoded) else piece.entity_spans for piece in encoded]
    return (
        stacked([piece.ids_T for piece in encoded], np.empty(0, np.int32)),
        stacked([coded(rows, 4) for rows in spans], np.empty((0, 4), np.int64)),
        stacked([coded(piece.slots, 3) for piece in encoded], np.empty((0, 3), np.int64)),
    )


def stacked(pieces: Sequence[np.ndarray], none: np.ndarray) -> Ragged:
    return end_to_end(np.concatenate([none, *pieces]), np.asarray([len(piece) for piece in pieces], np.int64))


def coded(rows: Sequence[tuple], width: int) -> np.ndarray:
    """(..., kind, id) as numbers."""
    numbers = [(*place, KINDS.index(kind), NO_ID if id is None else id) for *place, kind, id in rows]
    return np.asarray(numbers, dtype=np.int64).reshape(-1, width)


def decoded(rows: np.ndarray) -> list[tuple]:
    """What `coded` was given."""
    return [(*place, KINDS[kind], None if id == NO_ID else id) for *place, kind, id in rows.tolist()]


def left_end(segments: Sequence[Segment]) -> int:
    if segments and isinstance(segments[0], Slot):
        return SLOT
    return LINE if OPENS.match(sample_text(before_slot(segments))) else NOT_CUT


def right_end(segments: Sequence[Segment]) -> int:
    if segments and isinstance(segments[-1], Slot):
        return SLOT
    text = sample_text(before_slot(segments[::-1])[::-1])
    return LINE if CLOSES.search(text) else NOT_CUT


def before_slot(segments: Sequence[Segment]) -> Sequence[Segment]:
    """The segments up to the first slot."""
    slots = (place for place, segment in enumerate(segments) if isinstance(segment, Slot))
    return segments[: next(slots, len(segments))]
