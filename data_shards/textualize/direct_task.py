"""Whether to recommend an item, or which of the candidates (RecSysLLM, fifth task of P5's five).

P5 asks for one among 1 + 99 candidates; the lists are drawn and stored by `candidates.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recloom.data_shards.samples import Literal, Sample, Segment
from recloom.data_shards.textualize.behaviour import (
    PLACEHOLDERS,
    Person,
    TaskOptions,
    item_details,
    task_sample,
)
from recloom.data_shards.textualize.template import item_lines, one_line
from recloom.data_shards.textualize.template_sets import (
    NamedTemplate,
    TaskFamily,
    parse_word,
)

FAMILY = TaskFamily(
    "direct",
    required=frozenset(),
    optional=PLACEHOLDERS | {"details"},
    forms={"yes_no": frozenset({"candidate"}), "title": frozenset({"candidates"})},
)


@dataclass(frozen=True)
class DirectContext:
    """Item ids; a yes/no question shows one candidate, the others all in the order given.

    target: what the user took, None for inference. A yes/no answer says whether the candidate is it.
    """

    person: Person
    candidates: Sequence[int]
    target: int | None = None


def direct_sample(template: NamedTemplate, context: DirectContext, options: TaskOptions) -> Sample:
    """Meta: task, template_id, form, user, items (as shown), history, answer (the item, or True or False)."""
    shown, is_choice = [int(item) for item in context.candidates], template.form == "title"
    target = None if context.target is None else int(context.target)
    assert is_choice or len(shown) == 1, "a yes/no question is about one candidate"
    assert not is_choice or target is None or target in shown, "the target is a candidate"
    answer, text = direct_answer(shown, target, is_choice, options)
    values: dict[str, Sequence[Segment]] = {
        "candidate": item_lines(shown[:1], options.titles),
        "candidates": item_lines(shown, options.titles),
        "details": () if is_choice else item_details(shown[0], options),
        "answer": text,
    }
    return task_sample(FAMILY.name, template, context.person, options, values, shown, answer)


def direct_answer(
    shown: Sequence[int], target: int | None, is_choice: bool, options: TaskOptions
) -> tuple[int | None, Sequence[Segment]]:
    """The answer for the meta, and as text."""
    if target is None:
        return None, ()
    if is_choice:
        return target, item_lines([target], options.titles)
    is_yes = target == shown[0]
    return is_yes, (Literal("yes" if is_yes else "no"),)


def parse_yes_no(text: str) -> bool | None:
    """None for an answer that begins with another word."""
    word = parse_word(text, ("yes", "no"))
    return None if word is None else word == "yes"


def parse_title(text: str, candidates: Sequence[int], titles: Sequence[str]) -> int | None:
    """The candidate whose title is the answer's first line with text, exact but for white space.

    Candidates that share a title are taken in the order of `candidates`. None for what is no candidate.
    """
    answer = next((line for line in map(one_line, text.split("\n")) if line), None)
    return next((int(item) for item in candidates if one_line(titles[item]) == answer), None)
