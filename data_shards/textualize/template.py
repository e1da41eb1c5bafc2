"""Prompt templates: YAML data, checked when loaded, filled with segments.

A template file is a list of `blocks`, each one or more lines of text with {placeholders}. A block whose
placeholder has no content is left out, which is how optional parts of a prompt switch off. The last block
ends with a line that is just {answer}: all before it is the prompt, which so ends in a newline. Texts that
are only read (`answered` false) have no such line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, TypeAlias, TypeGuard

import yaml

from recloom.data_shards.errors import UserError
from recloom.data_shards.samples import Entity, Literal, Sample, Segment, merge_literals, sample_text

FOLDER = Path(__file__).resolve().parent / "templates"
ANSWER = "answer"
NOUN = "noun"


@dataclass(frozen=True)
class Family:
    """The placeholders that a prompt family fills; {noun} is always allowed.

    answered: {answer} is required too; False for texts that no answer follows.
    """

    name: str
    required: frozenset[str]
    optional: frozenset[str]
    answered: bool = True

    @property
    def known(self) -> frozenset[str]:
        return self.needed | self.optional | {NOUN}

    @property
    def needed(self) -> frozenset[str]:
        return self.required | {ANSWER} if self.answered else self.required


@dataclass(frozen=True)
class Field:
    """A placeholder in a block."""

    name: str


Block: TypeAlias = tuple[Literal | Field, ...]


@dataclass(frozen=True)
class Template:
    """Checked blocks; the last one ends with the answer's field."""

    name: str
    blocks: tuple[Block, ...]

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(part.name for block in self.blocks for part in block if isinstance(part, Field))


@dataclass(frozen=True)
class TextOptions:
    """What all prompts of a data set share: `titles` by item id (see `one_line_titles`) and the item noun."""

    titles: Sequence[str]
    noun: str


def one_line(text: str) -> str:
    """The text on one line: every run of white space becomes one space, none at the ends."""
    return " ".join(text.split())


def one_line_titles(titles: Iterable[str]) -> list[str]:
    """Titles fit for prompts. Raises UserError for a blank one, which no answer could name."""
    lines = [one_line(title) for title in titles]
    if "" in lines:
        raise UserError(f"items: item {lines.index('')} has a blank title: give it one or drop the item.")
    return lines


def template_path(source: str | Path) -> Path:
    """The file of a template: a path as it is, a name in the folder of shipped ones."""
    return Path(source) if str(source).endswith(".yaml") else FOLDER / f"{source}.yaml"


def load_template(source: str | Path, family: Family) -> Template:
    """A shipped template by name ("listwise") or a user's by path (ends in .yaml).

    Raises UserError for a file that cannot be read, a missing or unknown placeholder, or a blank line.
    """
    path = template_path(source)
    return build_template(path, path.stem, read_blocks(path), family)


def build_template(path: Path | str, name: str, texts: Sequence[str], family: Family) -> Template:
    """Blocks of text, checked. `path` is what an error names: the file, and the place in it where it has
    several templates."""
    for text in texts:
        check_lines(path, text)
    template = Template(name, tuple(parse_block(path, text) for text in texts))
    check_placeholders(path, template, family)
    return template


def read_blocks(path: Path) -> list[str]:
    """The texts of a template file."""
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise UserError(f"template {path}: no such file: name one of {shipped}, or the path of a .yaml file.")
    value = read_yaml(path)
    blocks = value.get("blocks") if isinstance(value, dict) and set(value) == {"blocks"} else None
    if not is_texts(blocks):
        raise UserError(f"template {path}: a template is one list of texts named `blocks`: write it so.")
    return blocks


def read_yaml(path: Path) -> Any:
    """What a YAML file holds."""
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = one_line(str(error))
        raise UserError(f"template {path}: it is no valid YAML ({reason}): mend it.") from None


def is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def check_lines(path: Path | str, text: str) -> None:
    """Blank lines and spaces at line ends would be tokenised otherwise than they look."""
    for line in text.split("\n"):
        if line != line.strip() or not line:
            raise UserError(
                f"template {path}: line {line!r} is blank or has white space at an end: "
                "remove it (YAML keeps a final newline after `|`, not after `|-`)."
            )


def parse_block(path: Path | str, text: str) -> Block:
    parts: list[Literal | Field] = []
    try:
        for literal, name, form, conversion in Formatter().parse(text):
            if form or conversion:
                raise ValueError(f"{{{name}}} must be a bare name")
            parts += [Literal(literal)] if literal else []
            parts += [Field(name)] if name is not None else []
    except ValueError as error:
        raise UserError(f"template {path}: block {text!r}: {error}: mend the braces.") from None
    return tuple(parts)


def check_placeholders(path: Path | str, template: Template, family: Family) -> None:
    unknown = sorted(template.fields - family.known)
    if unknown:
        known = ", ".join(sorted(family.known))
        raise UserError(f"template {path}: unknown placeholder {{{unknown[0]}}}: {family.name} has {known}.")
    missing = sorted(family.needed - template.fields)
    if missing:
        raise UserError(f"template {path}: placeholder {{{missing[0]}}} is missing: {family.name} needs it.")
    if family.answered:
        check_answer(path, template)


def check_answer(path: Path | str, template: Template) -> None:
    before = [part for block in template.blocks for part in block][:-1]
    last = template.blocks[-1]
    own_line = len(last) > 1 and isinstance(last[-2], Literal) and last[-2].text.endswith("\n")
    others = {part.name for part in last[:-1] if isinstance(part, Field)} - {NOUN}
    if last[-1] != Field(ANSWER) or Field(ANSWER) in before or others or not own_line:
        raise UserError(
            f"template {path}: {{answer}} must stand once, alone on the last line, and its block must hold "
            "no other placeholder: move it there."
        )


def fill(
    template: Template, values: Mapping[str, Sequence[Segment]]
) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """Prompt and answer. A block with an empty or absent value is left out, the answer's block never is.

    Raises UserError when a value is given that the template does not show.
    """
    unused = sorted(name for name, value in values.items() if value and name not in template.fields | {NOUN})
    if unused:
        raise UserError(
            f"template {template.name}: there is content for {{{unused[0]}}} and no such placeholder: "
            "add it to the template, or switch the content off."
        )
    segments: list[Segment] = []
    for block in template.blocks:
        names = [part.name for part in block if isinstance(part, Field) and part.name != ANSWER]
        if all(values.get(name) for name in names):
            segments += fill_block(block, values)
    return merge_literals(segments[:-1]), tuple(values.get(ANSWER) or ())


def fill_block(block: Block, values: Mapping[str, Sequence[Segment]]) -> list[Segment]:
    """A block's segments and the newline behind it; the answer stays out."""
    segments: list[Segment] = []
    for part in block:
        if isinstance(part, Literal):
            segments.append(part)
        elif part.name != ANSWER:
            segments += values[part.name]
    return [*segments, Literal("\n")]


def join_lines(rows: Iterable[Sequence[Segment]]) -> tuple[Segment, ...]:
    """Rows of segments, one a line, without a final newline."""
    segments: list[Segment] = []
    for row in rows:
        segments += [*row, Literal("\n")]
    return tuple(segments[:-1])


def item_lines(items: Iterable[int] | None, titles: Sequence[str]) -> tuple[Segment, ...]:
    """One title a line; nothing for None."""
    return join_lines([Entity(titles[item], "item", int(item))] for item in items or ())


def make_sample(
    task: str, template: Template, values: Mapping[str, Sequence[Segment]], **meta: Any
) -> Sample:
    """A sample whose key is made of task, user and content, so that equal prompts have equal keys."""
    prompt, answer = fill(template, values)
    content = json.dumps([sample_text(prompt), sample_text(answer), meta], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Sample(f"{task}-{meta['user']}-{digest}", prompt, answer, {"task": task, **meta})
