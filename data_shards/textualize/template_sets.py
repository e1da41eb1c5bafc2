"""Sets of templates: several ways to ask for one task, one of them held out for the zero-shot test.

RecSysLLM follows P5: each of five tasks has a set, and one prompt of each set is never trained on (section on
the set-up). A set is a YAML file with a list of `templates`; each has an `id`, `blocks` as in `template.py`,
the `form` of its answer where that is not the task's first, and `unseen: true` where it is the one held out.
Templates of a set show different parts of what is known, so content without a placeholder is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from recloom.data_shards.errors import UserError
from recloom.data_shards.samples import Sample, Segment
from recloom.data_shards.textualize.template import (
    FOLDER,
    NOUN,
    Family,
    Template,
    build_template,
    is_texts,
    make_sample,
    read_yaml,
)

SHIPPED = "recsysllm"
KEYS = {"id", "blocks"}
OPTIONAL_KEYS = {"form", "unseen"}
ID = re.compile(r"[A-Za-z0-9_-]+")
WORD = re.compile(r"[^\W\d_]+")
T = TypeVar("T")


@dataclass(frozen=True)
class TaskFamily:
    """The placeholders of a task.

    forms: what an answer may be, and the placeholders that only templates of this form have, all required;
    the first form is the default. one_of: at least one of these optional placeholders is there.
    """

    name: str
    required: frozenset[str]
    optional: frozenset[str]
    forms: Mapping[str, frozenset[str]]
    one_of: frozenset[str] = frozenset()

    def of(self, form: str) -> Family:
        """The placeholders of templates with this form of answer."""
        return Family(self.name, self.required | self.forms[form], self.optional)


@dataclass(frozen=True)
class NamedTemplate:
    """A template of a set; `form` says how its answer reads, `unseen` that it is only for the test."""

    template: Template
    form: str
    unseen: bool

    @property
    def id(self) -> str:
        return self.template.name


@dataclass(frozen=True)
class ReadAnswers(Generic[T]):
    """What generated answers say, None for one that cannot be read."""

    values: list[T | None]

    @property
    def unread(self) -> int:
        return sum(value is None for value in self.values)


def load_set(source: str | Path, family: TaskFamily) -> tuple[NamedTemplate, ...]:
    """A task's set, in file order: a shipped one by name ("recsysllm"), or a user's by path (a folder with a
    file for each task, or one file that ends in .yaml).

    Raises UserError for a file that cannot be read, a template that is not whole, an id or a text that is
    there twice, more than one unseen template, or none to train on.
    """
    path = set_path(source, family.name)
    entries = read_entries(path)
    templates = tuple(named_template(path, place, entry, family) for place, entry in enumerate(entries, 1))
    check_set(path, templates)
    return templates


def set_path(source: str | Path, task: str) -> Path:
    """The file of a task's set."""
    path = Path(source).expanduser()
    if path.suffix == ".yaml":
        return path
    return (path if path.is_dir() else FOLDER / str(source)) / f"{task}.yaml"


def seen_templates(templates: Iterable[NamedTemplate]) -> tuple[NamedTemplate, ...]:
    """The templates to train on."""
    return tuple(named for named in templates if not named.unseen)


def unseen_template(templates: Iterable[NamedTemplate]) -> NamedTemplate | None:
    """The template held out for the zero-shot test; None where a user's set has none."""
    return next((named for named in templates if named.unseen), None)


def read_entries(path: Path) -> list[Any]:
    if not path.is_file():
        raise UserError(f"template set {path}: no such file: name {SHIPPED}, or the path of a .yaml file.")
    value = read_yaml(path)
    entries = value.get("templates") if isinstance(value, dict) and set(value) == {"templates"} else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"template set {path}: a set is one list named `templates`: write it so.")
    return entries


def named_template(path: Path, place: int, entry: Any, family: TaskFamily) -> NamedTemplate:
    """One entry, checked."""
    check_entry(f"{path}, number {place}", entry)
    where = f"{path}, {entry['id']}"
    form = entry.get("form", next(iter(family.forms)))
    if not isinstance(form, str) or form not in family.forms:
        known = ", ".join(family.forms)
        raise UserError(f"template {where}: form is {form!r}: {family.name} has {known}, use one of them.")
    template = build_template(where, entry["id"], entry["blocks"], family.of(form))
    if family.one_of and not family.one_of & template.fields:
        names = ", ".join(f"{{{name}}}" for name in sorted(family.one_of))
        raise UserError(f"template {where}: {family.name} needs one of the placeholders {names}: add one.")
    return NamedTemplate(template, form, entry.get("unseen", False))


def check_entry(where: str, entry: Any) -> None:
    """An entry has an id and blocks, and no key that is not known."""
    keys = set(entry) if isinstance(entry, dict) else set()
    if not KEYS <= keys <= KEYS | OPTIONAL_KEYS or not is_texts(entry["blocks"]):
        raise UserError(
            f"template {where}: a template has an `id`, a list of texts named `blocks`, and where needed "
            "`form` and `unseen`, nothing else: write it so."
        )
    if not isinstance(entry["id"], str) or not ID.fullmatch(entry["id"]):
        raise UserError(f"template {where}: id is {entry['id']!r}: use letters, digits, `_` and `-`.")
    if not isinstance(entry.get("unseen", False), bool):
        raise UserError(f"template {where}: unseen is {entry['unseen']!r}: it must be true or false.")


def check_set(path: Path, templates: Sequence[NamedTemplate]) -> None:
    """Ids and texts are there once, one template at most is unseen, one at least is not."""
    by_id: set[str] = set()
    by_blocks: dict[Any, str] = {}
    for named in templates:
        twin = by_blocks.setdefault((named.form, named.template.blocks), named.id)
        if named.id in by_id:
            raise UserError(f"template set {path}: id {named.id} is there twice: give each its own.")
        if twin != named.id:
            raise UserError(f"template set {path}: {twin} and {named.id} are equal: remove one of them.")
        by_id.add(named.id)
    num_unseen = len(templates) - len(seen_templates(templates))
    if num_unseen > 1 or num_unseen == len(templates):
        raise UserError(
            f"template set {path}: {num_unseen} of {len(templates)} templates are unseen: hold out one at "
            "most, and keep one to train on."
        )


def named_sample(
    task: str, named: NamedTemplate, values: Mapping[str, Sequence[Segment]], **meta: Any
) -> Sample:
    """A sample of one template of a set. Meta: task, template_id, form and what is given."""
    fields = named.template.fields | {NOUN}
    shown = {name: value for name, value in values.items() if name in fields}
    return make_sample(task, named.template, shown, template_id=named.id, form=named.form, **meta)


def read_answers(texts: Iterable[str], parse: Callable[[str], T | None]) -> ReadAnswers[T]:
    """Generated answers through a reader that gives None for what it cannot read."""
    return ReadAnswers([parse(text) for text in texts])


def parse_word(text: str, words: Sequence[str]) -> str | None:
    """The first word of an answer, where it is one of `words` (lower case); None otherwise."""
    match = WORD.search(text)
    found = match.group().lower() if match else None
    return found if found in words else None
