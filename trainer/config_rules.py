"""What settings must hold together: the rules that no field can check alone.

A rule names its fields, so that a rule about a field that is wrong by itself can be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recloom.trainer.config import RunConfig


@dataclass(frozen=True)
class Rule:
    """`find` says in one sentence without a full stop what is wrong, or None."""

    fields: tuple[str, ...]
    find: Callable[[RunConfig], str | None]


def some_backbone(config: RunConfig) -> str | None:
    if config.backbones.tasks:
        return None
    return "backbones: no task is named, so there is nothing to do: add direct, sequential or rating"


def shown_at_most(name: str) -> Callable[[RunConfig], str | None]:
    """A list in a prompt or answer is taken out of the candidates."""

    def find(config: RunConfig) -> str | None:
        shown, candidates = getattr(config.prompts, name), config.prompts.candidates
        if shown <= candidates:
            return None
        return (
            f"prompts.{name} = {shown}: more than prompts.candidates = {candidates}, "
            f"set it to {candidates} or less"
        )

    return find


def same_length(config: RunConfig) -> str | None:
    top_k, candidates = config.rank.top_k, config.prompts.candidates
    if top_k == candidates:
        return None
    return (
        f"rank.top_k = {top_k}: differs from prompts.candidates = {candidates}, but the LLM is trained "
        "to rank as many items as it is asked for, set them equal"
    )


def ks_within(config: RunConfig) -> str | None:
    ks, top_k = list(config.evaluate.ks), config.rank.top_k
    if max(ks) <= top_k:
        return None
    return (
        f"evaluate.ks = {ks}: reaches beyond rank.top_k = {top_k}, a re-ranked list has only {top_k} items, "
        "lower evaluate.ks or raise rank.top_k"
    )


def row_within_context(config: RunConfig) -> str | None:
    row, context = config.training.pack_length, config.training.context
    if row <= context:
        return None
    return (
        f"training.pack_length = {row}: more than training.context = {context}, a row can't be longer than "
        "the context, lower pack_length or raise context"
    )


def answer_fits(config: RunConfig) -> str | None:
    longest, answer = config.bulk.max_model_len, config.rank.max_answer_tokens
    if longest is None or answer < longest:
        return None
    return (
        f"rank.max_answer_tokens = {answer}: leaves no room for a prompt in bulk.max_model_len = {longest}, "
        "lower the one or raise the other"
    )


def offload_divides(config: RunConfig) -> str | None:
    """DeepSpeed offloads what ZeRO divides; at stage 0 it would run a CPU optimizer on GPU weights."""
    if not config.parallel.offload_optimizer or config.parallel.zero_stage > 0:
        return None
    return "parallel.offload_optimizer = True: needs ZeRO, but parallel.zero_stage = 0, set it to 1, 2 or 3"


def liked_above_disliked(config: RunConfig) -> str | None:
    liked, disliked = config.positive_rating, config.disliked_below
    if liked is None or disliked is None or disliked <= liked:
        return None
    return (
        f"disliked_below = {disliked:g}: above positive_rating = {liked:g}, an item would be liked and "
        "disliked at once, lower disliked_below"
    )


def pointwise_needs_ratings(config: RunConfig) -> str | None:
    if config.rank.ranking == "listwise" or config.backbones.rating is not None:
        return None
    return (
        f"rank.ranking = {config.rank.ranking}: the LLM learns to rate candidates from rating prompts, and "
        "backbones.rating is not named, add it or set rank.ranking to listwise"
    )


def examples_complete(config: RunConfig) -> str | None:
    attributes = config.augment.attributes
    if attributes is None:
        return None
    wanted = {"title", *attributes.names}
    wrong = next((example for example in attributes.examples if set(example) != wanted), None)
    if wrong is None:
        return None
    return (
        f"augment.attributes.examples: an example has {', '.join(wrong)}, give it {', '.join(sorted(wanted))}"
    )


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


RULES = (
    Rule(("run_dir", "name", "data"), data_outside_run),
    Rule(("positive_rating", "disliked_below"), liked_above_disliked),
    Rule(("backbones",), some_backbone),
    Rule(("prompts.answer_items", "prompts.candidates"), shown_at_most("answer_items")),
    Rule(("prompts.prediction_items", "prompts.candidates"), shown_at_most("prediction_items")),
    Rule(("training.pack_length", "training.context"), row_within_context),
    Rule(("parallel.offload_optimizer", "parallel.zero_stage"), offload_divides),
    Rule(("rank.top_k", "prompts.candidates"), same_length),
    Rule(("rank.max_answer_tokens", "bulk.max_model_len"), answer_fits),
    Rule(("evaluate.ks", "rank.top_k"), ks_within),
    Rule(("rank.ranking", "backbones"), pointwise_needs_ratings),
    Rule(("augment.attributes",), examples_complete),
    Rule(("seeds",), seeds_differ),
)


def broken_rules(config: RunConfig, wrong: Iterable[str] = ()) -> list[str]:
    """One sentence a broken rule. Rules about a field in `wrong` (dotted names) are left out."""
    wrong = list(wrong)
    kept = [rule for rule in RULES if not any(touches(a, b) for a in rule.fields for b in wrong)]
    return [text for rule in kept if (text := rule.find(config)) is not None]


def touches(first: str, second: str) -> bool:
    """True when one dotted name is the other or lies inside it."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")
