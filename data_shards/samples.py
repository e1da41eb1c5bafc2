"""A sample is text with structure: literal text, entity text, and slots for vectors.

Nothing here knows a tokenizer; `renderer.py` turns a sample into token ids, entity spans and slot positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from typing import Literal as Choice

EntityKind: TypeAlias = Choice["item", "attribute"]
SlotKind: TypeAlias = Choice["user", "history", "candidate", "prefix", "suffix"]


@dataclass(frozen=True)
class Literal:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Entity:
    """Text that names an item or an attribute; `id` is None where the catalogue has no number for it."""

    text: str
    kind: EntityKind
    id: int | None


@dataclass(frozen=True)
class Slot:
    """One position whose embedding is injected later; it has no text."""

    kind: SlotKind
    id: int | None


Segment: TypeAlias = Literal | Entity | Slot


@dataclass(frozen=True)
class Sample:
    """A prompt and its answer (empty for inference).

    `key` is unique in a data set and consists of letters, digits, "_" and "-".
    `meta` holds JSON values: `task`, `user`, `items` and whatever the prompt family adds.
    """

    key: str
    prompt: tuple[Segment, ...]
    answer: tuple[Segment, ...]
    meta: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` gives an equal sample back."""
        prompt = [segment_to_json(segment) for segment in self.prompt]
        answer = [segment_to_json(segment) for segment in self.answer]
        return {"key": self.key, "meta": self.meta, "prompt": prompt, "answer": answer}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Sample:
        prompt = tuple(segment_from_json(segment) for segment in value["prompt"])
        answer = tuple(segment_from_json(segment) for segment in value["answer"])
        return cls(value["key"], prompt, answer, value["meta"])


def segment_to_json(segment: Segment) -> str | dict[str, Any]:
    """Literal text becomes a string, the rest an object that says what it is."""
    if isinstance(segment, Literal):
        return segment.text
    if isinstance(segment, Entity):
        return {"entity": segment.kind, "id": segment.id, "text": segment.text}
    return {"slot": segment.kind, "id": segment.id}


def segment_from_json(value: str | dict[str, Any]) -> Segment:
    if isinstance(value, str):
        return Literal(value)
    if "entity" in value:
        return Entity(value["text"], value["entity"], value["id"])
    return Slot(value["slot"], value["id"])


def sample_text(segments: Sequence[Segment]) -> str:
    """The text a person reads; a slot shows as `<kind id>`."""
    return "".join(f"<{s.kind} {s.id}>" if isinstance(s, Slot) else s.text for s in segments)


def merge_literals(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """The same text with neighbouring literals joined and empty ones dropped."""
    merged: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Literal) and merged and isinstance(merged[-1], Literal):
            merged[-1] = Literal(merged[-1].text + segment.text)
        elif not isinstance(segment, Literal) or segment.text:
            merged.append(segment)
    return tuple(merged)
