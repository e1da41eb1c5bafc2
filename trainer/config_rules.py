"""What settings must hold together: the rules that no field can check alone.

Those of one system are in `trainer/systems/NAME/rules.py`; its config class adds them to the common ones. A
rule names its fields, so that a rule about a field that is wrong by itself can be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recloom.data_shards.secrets import redacted

if TYPE_CHECKING:
    from recloom.trainer.config import RunConfig


@dataclass(frozen=True)
class Rule:
    """`find` says in one sentence without a full stop what is wrong, or None."""

    fields: tuple[str, ...]
    find: Callable[[Any], str | None]


def some_backbone(config: RunConfig) -> str | None:
    if config.backbones.tasks:
        return None
    return "backbones: no task is named, so there is nothing to do: add direct, sequential or rating"


def offload_divides(config: RunConfig) -> str | None:
    """DeepSpeed offloads what ZeRO divides; at stage 0 it would run a CPU optimizer on GPU weights."""
    if not config.parallel.offload_optimizer or config.parallel.zero_stage > 0:
        return None
    return "parallel.offload_optimizer = True: needs ZeRO, but parallel.zero_stage = 0, set it to 1, 2 or 3"


def needs_zero_3(name: str, off: object) -> Rule:
    """A setting of what only ZeRO-3 does; DeepSpeed would drop it in silence, or stop far from the cause."""

    def find(config: RunConfig) -> str | None:
        value, stage = getattr(config.parallel, name), config.parallel.zero_stage
        if value == off or stage == 3:
            return None
        shown = f"'{value}'" if isinstance(value, str) else value
        return f"parallel.{name} = {shown}: needs ZeRO-3, but parallel.zero_stage = {stage}, set it to 3"

    return Rule((f"parallel.{name}", "parallel.zero_stage"), find)


def folder_holds_something(config: RunConfig) -> str | None:
    parallel = config.parallel
    if parallel.offload_folder is None or parallel.offload_optimizer or parallel.offload_parameters:
        return None
    return (
        f"parallel.offload_folder = '{parallel.offload_folder}': nothing is offloaded there, set "
        "parallel.offload_optimizer or parallel.offload_parameters to true, or leave it out"
    )


def groups_do_not_cross(config: RunConfig) -> str | None:
    """DeepSpeed counts ranks for these as if each were a data-parallel one, and would mix different parts of
    a layer."""
    parallel = config.parallel
    for name, off in (("hpz_size", 1), ("quantized_gradients", False)):
        value = getattr(parallel, name)
        if value != off and parallel.tensor > 1:
            return (
                f"parallel.{name} = {value}: its groups of ranks cross those of parallel.tensor = "
                f"{parallel.tensor}, use one of the two"
            )
    return None


def one_kind_of_fusion(config: RunConfig) -> str | None:
    if not (config.model.liger and config.model.compile):
        return None
    return "model.compile = True: model.liger has kernels for the same layers, set one of them to false"


def seeds_differ(config: RunConfig) -> str | None:
    if len(set(config.seeds)) == len(config.seeds):
        return None
    return f"seeds = {list(config.seeds)}: one is there twice, the same run again adds nothing, remove it"


def data_outside_run(config: RunConfig) -> str | None:
    """A stage deletes its old outputs in the run folder: nothing of the user's may lie there."""
    folder = config.folder.expanduser().resolve()
    for path in named_paths(config.data.model_dump()):
        if path.resolve().is_relative_to(folder):
            return (
                f"run_dir = '{config.folder}': the data in '{path}' lie inside the run folder, whose stages "
                "delete what they find there, choose another run_dir"
            )
    return None


def named_paths(value: Any) -> Iterable[Path]:
    """The files and folders that a data block names, at any depth."""
    if not isinstance(value, dict):
        return
    for key in ("path", "reviews", "meta"):
        if isinstance(value.get(key), str):
            yield Path(value[key]).expanduser()
    for inner in value.values():
        yield from named_paths(inner)


def without_secrets(config: RunConfig) -> str | None:
    """The resolved config is written into the run folder and read by whoever is shown a report."""
    for name, text in texts_in(config.model_dump(warnings=False)):
        if redacted(text) != text:
            return (
                f"{name}: it holds a password or a token, and the settings are written into the run folder, "
                "take it out and leave it to a variable such as HF_TOKEN, or to ~/.netrc"
            )
    return None


def texts_in(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """All texts in nested settings, with their dotted names."""
    if isinstance(value, str):
        yield name, value
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    for key, inner in inside:
        yield from texts_in(inner, f"{name}.{key}" if name else str(key))


COMMON_RULES = (
    Rule((), without_secrets),
    Rule(("run_dir", "name", "data"), data_outside_run),
    Rule(("backbones",), some_backbone),
    Rule(("parallel.offload_optimizer", "parallel.zero_stage"), offload_divides),
    needs_zero_3("offload_parameters", False),
    needs_zero_3("offload_folder", None),
    needs_zero_3("hpz_size", 1),
    needs_zero_3("quantized_weights", False),
    needs_zero_3("quantized_gradients", False),
    Rule(("parallel.offload_folder",), folder_holds_something),
    Rule(("parallel.tensor", "parallel.hpz_size", "parallel.quantized_gradients"), groups_do_not_cross),
    Rule(("model.liger", "model.compile"), one_kind_of_fusion),
    Rule(("seeds",), seeds_differ),
)


def broken_rules(config: RunConfig, wrong: Iterable[str] = ()) -> list[str]:
    """One sentence a broken rule. Rules about a field in `wrong` (dotted names) are left out."""
    rules, wrong = type(config).rules(), list(wrong)
    kept = [rule for rule in rules if not any(touches(a, b) for a in rule.fields for b in wrong)]
    return [text for rule in kept if (text := rule.find(config)) is not None]


def touches(first: str, second: str) -> bool:
    """True when one dotted name is the other or lies inside it."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")
