"""What a template with certain placeholders filled is made of: fixed texts and holes, in order.

A hole is a line, or lines, that change from sample to sample. Where a placeholder shares its line with other
text, the whole line is in the hole, so that it begins and ends where a tokenizer splits by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

from recloom.data_shards.errors import UserError
from recloom.data_shards.samples import Literal, Segment, Slot
from recloom.data_shards.textualize.template import ANSWER, Field, Template


@dataclass(frozen=True)
class Form:
    """What stands before and behind a value."""

    before: str
    behind: str

    def of(self, row: Sequence[Segment]) -> tuple[Segment, ...]:
        around = (Literal(self.before), *row, Literal(self.behind))
        return tuple(part for part in around if not isinstance(part, Literal) or part.text)


@dataclass(frozen=True)
class Hole:
    """The values of a placeholder, one row after another. `alone`: any number of rows, else one."""

    name: str
    first: Form
    middle: Form
    last: Form
    alone: bool

    @property
    def only(self) -> Form:
        """Of a single row."""
        return Form(self.first.before, self.last.behind)


Part: TypeAlias = str | Hole


def answer_hole() -> Hole:
    """An answer's rows, one a line, the last one without a line end."""
    return Hole(ANSWER, Form("", "\n"), Form("", "\n"), Form("", ""), alone=True)


def part_of_line(name: str, form: Form) -> Hole:
    return Hole(name, form, form, form, alone=False)


def prompt_parts(
    template: Template,
    shown: Set[str],
    constants: Mapping[str, str],
    tables: Mapping[str, Sequence[Sequence[Segment]]],
) -> list[Part]:
    """The prompt as fixed texts and holes.

    shown: the placeholders with content; blocks with others are left out. constants: texts that are the same
    in all samples. tables: by placeholder, the rows of segments that its values name. Raises UserError for
    two placeholders of `tables` in one line.
    """
    texts, names = flattened(template, shown | set(constants), constants)
    parts: list[Part] = []
    text = texts[0]
    for name, behind in zip(names, texts[1:], strict=True):
        text, before = cut_behind_last_line(text)
        rest, newline, behind = behind.partition("\n")
        if not newline and name != names[-1]:
            raise UserError(
                f"template {template.name}: {{{name}}} and another placeholder share a line: such lines "
                "cannot be composed, put them on two lines or render sample by sample."
            )
        parts += [text] if text else []
        if before or rest:
            parts.append(part_of_line(name, Form(before, rest + newline)))
        elif ends_in_slot(tables[name]):
            parts.append(Hole(name, Form("", ""), Form("\n", ""), Form("\n", ""), alone=True))
            behind = newline + behind
        else:
            parts.append(Hole(name, Form("", "\n"), Form("", "\n"), Form("", newline), alone=True))
        text = behind
    return [*parts, text] if text else parts


def flattened(
    template: Template, shown: Set[str], constants: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Texts and the placeholders between them, constants filled in; as `template.fill` joins the blocks."""
    texts, names = [""], []
    for block in template.blocks:
        fields = {part.name for part in block if isinstance(part, Field)} - {ANSWER}
        if not fields <= shown:
            continue
        for part in block:
            if isinstance(part, Literal):
                texts[-1] += part.text
            elif part.name in constants:
                texts[-1] += constants[part.name]
            elif part.name != ANSWER:
                names.append(part.name)
                texts.append("")
        texts[-1] += "\n"
    texts[-1] = texts[-1][:-1]
    return texts, names


def cut_behind_last_line(text: str) -> tuple[str, str]:
    """Whole lines, and what is begun of the next one."""
    end = text.rfind("\n") + 1
    return text[:end], text[end:]


def ends_in_slot(rows: Sequence[Sequence[Segment]]) -> bool:
    """A line end behind a slot is no cut: it belongs to what follows."""
    return len(rows) > 0 and len(rows[0]) > 0 and isinstance(rows[0][-1], Slot)
