"""What a user takes next, out of the full catalogue: a title (RecSysLLM, second task of P5's five)."""

from __future__ import annotations

from dataclasses import dataclass

from recloom.data_shards.samples import Sample
from recloom.data_shards.textualize.behaviour import LISTS, PLACEHOLDERS, Person, TaskOptions, task_sample
from recloom.data_shards.textualize.template import item_lines
from recloom.data_shards.textualize.template_sets import NamedTemplate, TaskFamily

FAMILY = TaskFamily(
    "sequential",
    required=frozenset(),
    optional=PLACEHOLDERS,
    forms={"title": frozenset()},
    one_of=LISTS,
)


@dataclass(frozen=True)
class SequentialContext:
    """The next item; None for inference."""

    person: Person
    answer: int | None = None


def sequential_sample(template: NamedTemplate, context: SequentialContext, options: TaskOptions) -> Sample:
    """Meta: task, template_id, form, user, items (none: nothing is shown to choose from), history, answer."""
    answer = None if context.answer is None else int(context.answer)
    values = {"answer": () if answer is None else item_lines([answer], options.titles)}
    return task_sample(FAMILY.name, template, context.person, options, values, [], answer)
