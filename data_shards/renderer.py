"""Samples to token ids, each distinct line tokenised once.

Shapes: T tokens.

A text is cut into pieces right after a newline that stands between two visible characters. There a
tokenizer splits by itself: byte-level BPE because its pre-tokenizer ends a piece at such a newline,
SentencePiece because no piece of its vocabulary goes on after one. So pieces are tokenised once, kept,
and composed into exactly the ids of the whole text. Runs of white space (blank lines, indentation) stay
inside a piece.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from recloom.data_shards.errors import UserError
from recloom.data_shards.samples import Entity, Literal, Sample, Segment, Slot

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# "/" may join the newline before it: o200k-style patterns end punctuation with [\r\n/]*.
CUT = re.compile(r"(?<=\S\n)(?=[^\s/])")
# A newline (Ċ in byte-level vocabularies) followed by something visible.
TOKEN_OVER_CUT = re.compile("[\nĊ][^\\s/\nĊĠĉč▁]")
PROBES = ("a\nb", "(x)\n'y'\n1\n...\n-z", " a \n b\n\nc\n", "The Été (1995)\n¿Qué?: 4\n東京\n/x\n#\n🎬")
NUM_CACHED_PIECES = 300_000

Span = tuple[int, int, str, int | None]
SlotPosition = tuple[int, str, int | None]


@dataclass(frozen=True)
class Rendered:
    """One training sequence: prompt, answer, end token.

    `ids_T` int32. The first `num_prompt` ids (a start token included) carry no loss, the rest do.
    `entity_spans` (start, end, kind, id): token ranges, end exclusive. `slots` (position, kind, id).
    """

    ids_T: np.ndarray
    num_prompt: int
    entity_spans: list[Span]
    slots: list[SlotPosition]


@dataclass(frozen=True)
class Piece:
    """Ids of a piece of text, and the first and last + 1 character that each token covers, (T, 2)."""

    ids_T: np.ndarray
    offsets_T2: np.ndarray


@dataclass(frozen=True)
class Encoded:
    ids_T: np.ndarray
    spans: list[Span]
    slots: list[SlotPosition]


class Renderer:
    """Renders samples with one tokenizer.

    The tokenizer must be a "fast" one (the Rust backend), because entity spans need character offsets.
    Text never turns into control tokens: a title that reads "</s>" is tokenised as these four characters.
    Sequences begin as the tokenizer begins a text; with `start` they begin with its start token in any case,
    where it has one, or with the control token that `start` names. Decoders rest their attention on the first
    position, so a vector is better not there. Raises UserError for a tokenizer without offsets, end token or
    the one that `start` names, or whose tokens cross lines.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: bool | str = False) -> None:
        self._name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        self._backend = private_backend(tokenizer, self._name)
        if tokenizer.eos_token_id is None:
            raise UserError(f"tokenizer {self._name}: it has no end token: set eos_token in its config.")
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.prefix_ids: list[int] = start_ids(tokenizer)
        added = [] if self.prefix_ids else added_start(tokenizer, start)
        self.prefix_ids += added
        self._fingerprint = fingerprint(tokenizer) + start_mark(tokenizer, added)
        self._piece = lru_cache(maxsize=NUM_CACHED_PIECES)(self._tokenise)
        self._anchor = self._find_anchor()
        self._check_cuts()

    def fingerprint(self) -> str:
        """A hash that changes when the tokenizer would give other ids."""
        return self._fingerprint

    def render(self, sample: Sample) -> Rendered:
        """The training sequence of a sample. Raises ValueError for a sample without an answer."""
        if not sample.answer:
            raise ValueError(f"sample {sample.key} has no answer to train on: render its prompt only.")
        prefix_T = np.asarray(self.prefix_ids, dtype=np.int32)
        prompt = self._encode(sample.prompt, is_start=True, num_before=len(prefix_T))
        num_prompt = len(prefix_T) + len(prompt.ids_T)
        answer = self._encode(sample.answer, is_start=not sample.prompt, num_before=num_prompt)
        end_T = np.asarray([self.eos_id], dtype=np.int32)
        ids_T = np.concatenate([prefix_T, prompt.ids_T, answer.ids_T, end_T])
        return Rendered(ids_T, num_prompt, prompt.spans + answer.spans, prompt.slots + answer.slots)

    def render_text(self, sample: Sample) -> Rendered:
        """A text that is only read: the prompt as training sees it, nothing behind it carries loss."""
        encoded = self._encode(sample.prompt, is_start=True, num_before=len(self.prefix_ids))
        ids_T = np.concatenate([np.asarray(self.prefix_ids, dtype=np.int32), encoded.ids_T])
        return Rendered(ids_T, len(ids_T), encoded.spans, encoded.slots)

    def render_prompt(self, segments: Sequence[Segment]) -> list[int]:
        """The ids of a prompt for inference: exactly the first `num_prompt` ids that training saw."""
        return self.render_slots(segments)[0]

    def render_slots(self, segments: Sequence[Segment]) -> tuple[list[int], list[SlotPosition]]:
        """The ids of a prompt for inference, and where its slots are (`pad_id` stands there)."""
        encoded = self._encode(segments, is_start=True, num_before=len(self.prefix_ids))
        return self.prefix_ids + encoded.ids_T.tolist(), encoded.slots

    def encode_part(self, segments: Sequence[Segment], is_start: bool) -> Encoded:
        """A part of a sequence, spans and slots counted from its first token; is_start: nothing stands before
        it. Parts compose where the joint is a cut or a slot (`units.py`)."""
        return self._encode(segments, is_start, num_before=0)

    @property
    def start_differs(self) -> bool:
        """Whether the tokenizer gives the first line of a text other ids than the same line further down."""
        return self._anchor[1] > 0

    def answer_ids(self, text: str) -> list[int]:
        """The ids of an answer's text behind a prompt, without the end token."""
        ids: list[int] = self._encode([Literal(text)], is_start=False, num_before=0).ids_T.tolist()
        return ids

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return int(self._backend.get_vocab_size())

    def text(self, ids: Sequence[int]) -> str:
        """What token ids say, control tokens left out."""
        return str(self._backend.decode(list(ids)))

    def _encode(self, segments: Sequence[Segment], is_start: bool, num_before: int) -> Encoded:
        """Compose segments; `num_before` tokens already stand before them in the sequence."""
        parts: list[np.ndarray] = [np.empty(0, dtype=np.int32)]
        spans: list[Span] = []
        slots: list[SlotPosition] = []
        position = num_before
        for _, group in groupby(segments, key=lambda segment: isinstance(segment, Slot)):
            run = list(group)
            run_slots = [segment for segment in run if isinstance(segment, Slot)]
            if run_slots:
                ids_T = np.full(len(run_slots), self.pad_id, dtype=np.int32)
                slots += [(position + k, slot.kind, slot.id) for k, slot in enumerate(run_slots)]
            else:
                text = [segment for segment in run if not isinstance(segment, Slot)]
                ids_T, run_spans = self._encode_text(text, is_start and position == num_before)
                spans += [(position + start, position + end, kind, id) for start, end, kind, id in run_spans]
            parts.append(ids_T)
            position += len(ids_T)
        return Encoded(np.concatenate(parts), spans, slots)

    def _encode_text(self, run: Sequence[Literal | Entity], is_start: bool) -> tuple[np.ndarray, list[Span]]:
        """Ids of a run of text without slots, and its entity spans counted from its first token."""
        text = "".join(segment.text for segment in run)
        if not text:
            return np.empty(0, dtype=np.int32), []
        texts = CUT.split(text)
        pieces = [self._piece(piece, is_start and k == 0) for k, piece in enumerate(texts)]
        ids_T = np.concatenate([piece.ids_T for piece in pieces])
        return ids_T, entity_spans(run, texts, pieces)

    def _tokenise(self, text: str, is_start: bool) -> Piece:
        """Tokenise one piece. Away from the start it stands behind an anchor line, which is taken off again,
        because some tokenizers put a space before a text."""
        anchor, num_anchor = ("", 0) if is_start else self._anchor
        encoding = self._backend.encode(anchor + text, add_special_tokens=False)
        offsets_T2 = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)[num_anchor:] - len(anchor)
        if len(offsets_T2) and offsets_T2[0, 0] < 0:
            raise UserError(
                f"tokenizer {self._name}: it joins {text[:40]!r} with the line before: use another."
            )
        ids_T = np.asarray(encoding.ids[num_anchor:], dtype=np.int32)
        return Piece(ids_T, offsets_T2)

    def _find_anchor(self) -> tuple[str, int]:
        """The line put before later pieces and its number of tokens; empty where a start is like any line."""
        line = self._backend.encode("a\n", add_special_tokens=False).ids
        twice = self._backend.encode("a\na\n", add_special_tokens=False).ids
        return ("", 0) if twice == line + line else ("a\n", len(line))

    def _check_cuts(self) -> None:
        """Refuse a tokenizer whose tokens may cross a cut."""
        crossing = [token for token in self._backend.get_vocab() if TOKEN_OVER_CUT.search(token)]
        wrong = [text for text in PROBES if self._whole(text) != self._composed(text)]
        if crossing or wrong:
            example = repr((crossing + wrong)[0])
            raise UserError(
                f"tokenizer {self._name}: its tokens cross line ends (see {example}): use another."
            )

    def _whole(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _composed(self, text: str) -> list[int]:
        ids: list[int] = self._encode([Literal(text)], is_start=True, num_before=0).ids_T.tolist()
        return ids


def entity_spans(run: Sequence[Literal | Entity], texts: list[str], pieces: list[Piece]) -> list[Span]:
    """Token ranges of the entities in `run`, whose text is `texts` joined; a token that covers any
    character of an entity belongs to it."""
    entities: list[Entity] = []
    bounds: list[tuple[int, int]] = []
    position = 0
    for segment in run:
        if isinstance(segment, Entity):
            entities.append(segment)
            bounds.append((position, position + len(segment.text)))
        position += len(segment.text)
    if not entities:
        return []
    bases = np.cumsum([0, *(len(text) for text in texts[:-1])])
    base_T = np.repeat(bases, [len(piece.ids_T) for piece in pieces])
    offsets_T2 = np.concatenate([piece.offsets_T2 for piece in pieces]) + base_T[:, None]
    bounds_E2 = np.asarray(bounds)
    first_E = np.searchsorted(offsets_T2[:, 1], bounds_E2[:, 0], side="right").tolist()
    last_E = np.searchsorted(offsets_T2[:, 0], bounds_E2[:, 1], side="left").tolist()
    return [(first, last, e.kind, e.id) for first, last, e in zip(first_E, last_E, entities, strict=True)]


def private_backend(tokenizer: PreTrainedTokenizerBase, name: str) -> Tokenizer:
    """A copy of the Rust tokenizer, so that nobody's padding or truncation settings reach in."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"tokenizer {name}: it gives no character offsets: use its fast version.")
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    copy.encode_special_tokens = True
    return copy


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text by itself: a start token, or nothing."""
    bare = list(tokenizer("a", add_special_tokens=False).input_ids)
    full = list(tokenizer("a").input_ids)
    return next(full[:k] for k in range(len(full)) if full[k : k + len(bare)] == bare)


def added_start(tokenizer: PreTrainedTokenizerBase, start: bool | str) -> list[int]:
    """The token that `start` names, or the tokenizer's own start token, if it has one and it is wanted."""
    if isinstance(start, str):
        known = tokenizer.get_added_vocab()
        if start not in known:
            raise UserError(
                f"start token {start!r}: the tokenizer has no such control token: choose from "
                f"{', '.join(sorted(known))}."
            )
        return [known[start]]
    return [tokenizer.bos_token_id] if start and tokenizer.bos_token_id is not None else []


def start_mark(tokenizer: PreTrainedTokenizerBase, added: list[int]) -> str:
    """What a start token that the tokenizer does not add by itself makes of its fingerprint."""
    if not added:
        return ""
    return "+start" if added == [tokenizer.bos_token_id] else f"+start {added[0]}"


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over all that decides the ids: vocabulary, merges, normalizer, splitting, control tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = ("model", "normalizer", "pre_tokenizer", "post_processor", "added_tokens")
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    text = json.dumps([{part: state[part] for part in parts}, ends], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
