"""What pydantic finds wrong in a YAML, as sentences for people: field, value, rule, remedy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from recloom.trainer.config import RunConfig
from recloom.trainer.config_rules import broken_rules

MAX_VALUE = 80  # characters of a wrong value that a sentence repeats


def sentences(raw: dict[str, Any], schema: type[RunConfig], error: ValidationError) -> list[str]:
    """One sentence a mistake, those between fields included.

    Pydantic looks at rules between fields only once every field is right; here they are looked at
    beside wrong fields too, as far as they do not touch one.
    """
    problems = error.errors()
    alone = [problem for problem in problems if problem["loc"] and not has_inner(problem, problems)]
    found = [sentence(problem, schema) for problem in alone]
    if problems[-1]["loc"]:
        return found + [f"{text}." for text in rules_beside(raw, schema, alone)]
    return found + [f"{text}." for text in str(problems[-1]["ctx"]["error"]).split("\n")]


def has_inner(problem: Any, problems: Sequence[Any]) -> bool:
    """True for a list that is too short only because of a wrong value in it, which has its own sentence."""
    loc = problem["loc"]
    return any(other["loc"][: len(loc)] == loc and other["loc"] != loc for other in problems)


def sentence(problem: Any, schema: type[BaseModel]) -> str:
    """One pydantic error as field, value, rule, remedy."""
    loc = [str(part) for part in problem["loc"]]
    field, kind = ".".join(loc), problem["type"]
    given = f"{field} = {shortened(problem['input'])}"
    info = field_at(schema, [part for part in problem["loc"] if isinstance(part, str)])
    if kind == "extra_forbidden":
        return f"{field}: unknown setting; {hint_for(loc, schema)}"
    if kind == "missing":
        options = literal_options(info)
        choice = f", one of: {', '.join(map(str, options))}" if options else ""
        return f"{field}: required and not given; add it to the YAML{choice}."
    if kind == "literal_error":
        return f"{given}: not one of the known values; {choose(problem['input'], literal_options(info))}"
    if kind == "value_error":
        return f"{field}: {str(problem['ctx']['error']).rstrip('.')}."
    if kind == "model_type":
        return f"{given}: not a block of settings; indent its settings below it, or leave the line out."
    rule = (problem["msg"][0].lower() + problem["msg"][1:]).replace("tuple", "list")
    meaning = f" ({info.description.rstrip('.')})" if info and info.description else ""
    return f"{given}: {rule}{meaning}."


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."


def nearest(given: str, known: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(given, known, n=1, cutoff=0.5)), None)


def did_you_mean(name: str | None) -> str:
    return f"did you mean '{name}'?" if name is not None else ""


def hint_for(loc: list[str], schema: type[BaseModel]) -> str:
    """The remedy for an unknown setting: its right block, the nearest name, or all names there are."""
    known = known_keys(schema, [name for name in loc[:-1] if not name.isdigit()])  # not the place in a list
    blocks = [block for block in schema.model_fields if loc[-1] in known_keys(schema, [block])]
    if len(blocks) == 1:
        return f"did you mean '{blocks[0]}.{loc[-1]}'?"
    return did_you_mean(nearest(loc[-1], known)) or f"known here: {', '.join(sorted(known))}."


def choose(given: Any, options: tuple[Any, ...]) -> str:
    """The remedy for a value that is none of the options."""
    texts = [str(option) for option in options]
    if str(given) in texts:
        return f"write {given} without quotes."
    return did_you_mean(nearest(str(given), texts)) or f"choose one of: {', '.join(texts)}."


def rules_beside(raw: dict[str, Any], schema: type[RunConfig], problems: list[Any]) -> list[str]:
    """Broken rules between fields that are right, in a YAML that has wrong fields too."""
    wrong = {".".join(map(str, problem["loc"])) for problem in problems}
    for problem in problems:
        # A misspelt field is wrong under its right name too: its default must not be judged.
        if problem["type"] == "extra_forbidden":
            *block, name = [str(part) for part in problem["loc"]]
            wrong.add(".".join([*block, nearest(name, known_keys(schema, block)) or name]))
    values = {}
    for name, field in schema.model_fields.items():
        try:
            given = without(raw[name], name, wrong) if name in raw else field.get_default()
            annotation: Any = field.annotation
            values[name] = TypeAdapter(annotation).validate_python(given)
        except ValidationError:
            wrong.add(name)
    return broken_rules(schema.model_construct(**values), wrong)


def without(value: Any, name: str, wrong: set[str]) -> Any:
    """A block less its wrong fields, at any depth."""
    if not isinstance(value, dict):
        return value
    inner = {key: f"{name}.{key}" for key in value}
    return {key: without(value[key], inner[key], wrong) for key in value if inner[key] not in wrong}


def field_at(schema: type[BaseModel], loc: list[str]) -> FieldInfo | None:
    """The field that a location names; None for unknown ones and for places inside a list."""
    block: Any = schema
    for name in loc[:-1]:
        field = getattr(block, "model_fields", {}).get(name)
        block = None if field is None else model_in(field.annotation)
    return getattr(block, "model_fields", {}).get(loc[-1]) if loc else None


def known_keys(schema: type[BaseModel], loc: list[str]) -> list[str]:
    """The field names of the block at `loc`."""
    field = field_at(schema, loc)
    block = schema if not loc else model_in(field.annotation) if field else None
    return list(getattr(block, "model_fields", {}))


def model_in(annotation: Any) -> Any:
    """The pydantic model inside an annotation such as `TableFile | None`."""
    if isinstance(annotation, type):
        return annotation
    return next((a for a in get_args(annotation) if hasattr(a, "model_fields")), None)


def literal_options(field: FieldInfo | None) -> tuple[Any, ...]:
    annotation = field.annotation if field else None
    inner = [annotation, *get_args(annotation)]
    return next((get_args(a) for a in inner if get_origin(a) is Literal), ())
