"""What Llama4Rec's settings must hold together (see trainer/config_rules.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from recloom.trainer.config_rules import Rule

if TYPE_CHECKING:
    from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig


def liked_above_disliked(config: Llama4RecConfig) -> str | None:
    liked, disliked = config.positive_rating, config.disliked_below
    if liked is None or disliked is None or disliked <= liked:
        return None
    return (
        f"disliked_below = {disliked:g}: above positive_rating = {liked:g}, an item would be liked and "
        "disliked at once, lower disliked_below"
    )


def shown_at_most(name: str) -> Callable[[Llama4RecConfig], str | None]:
    """A list in a prompt or answer is taken out of the candidates."""

    def find(config: Llama4RecConfig) -> str | None:
        shown, candidates = getattr(config.prompts, name), config.prompts.candidates
        if shown <= candidates:
            return None
        return (
            f"prompts.{name} = {shown}: more than prompts.candidates = {candidates}, "
            f"set it to {candidates} or less"
        )

    return find


def row_within_context(config: Llama4RecConfig) -> str | None:
    row, context = config.training.pack_length, config.training.context
    if row <= context:
        return None
    return (
        f"training.pack_length = {row}: more than training.context = {context}, a row can't be longer than "
        "the context, lower pack_length or raise context"
    )


def same_length(config: Llama4RecConfig) -> str | None:
    top_k, candidates = config.rank.top_k, config.prompts.candidates
    if top_k == candidates:
        return None
    return (
        f"rank.top_k = {top_k}: differs from prompts.candidates = {candidates}, but the LLM is trained "
        "to rank as many items as it is asked for, set them equal"
    )


def answer_fits(config: Llama4RecConfig) -> str | None:
    longest, answer = config.bulk.max_model_len, config.rank.max_answer_tokens
    if longest is None or answer < longest:
        return None
    return (
        f"rank.max_answer_tokens = {answer}: leaves no room for a prompt in bulk.max_model_len = {longest}, "
        "lower the one or raise the other"
    )


def ks_within(config: Llama4RecConfig) -> str | None:
    ks, top_k = list(config.evaluate.ks), config.rank.top_k
    if max(ks) <= top_k:
        return None
    return (
        f"evaluate.ks = {ks}: reaches beyond rank.top_k = {top_k}, a re-ranked list has only {top_k} items, "
        "lower evaluate.ks or raise rank.top_k"
    )


def pointwise_needs_ratings(config: Llama4RecConfig) -> str | None:
    if config.rank.ranking == "listwise" or config.backbones.rating is not None:
        return None
    return (
        f"rank.ranking = {config.rank.ranking}: the LLM learns to rate candidates from rating prompts, and "
        "backbones.rating is not named, add it or set rank.ranking to listwise"
    )


def examples_complete(config: Llama4RecConfig) -> str | None:
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


RULES = (
    Rule(("positive_rating", "disliked_below"), liked_above_disliked),
    Rule(("prompts.answer_items", "prompts.candidates"), shown_at_most("answer_items")),
    Rule(("prompts.prediction_items", "prompts.candidates"), shown_at_most("prediction_items")),
    Rule(("training.pack_length", "training.context"), row_within_context),
    Rule(("rank.top_k", "prompts.candidates"), same_length),
    Rule(("rank.max_answer_tokens", "bulk.max_model_len"), answer_fits),
    Rule(("evaluate.ks", "rank.top_k"), ks_within),
    Rule(("rank.ranking", "backbones"), pointwise_needs_ratings),
    Rule(("augment.attributes",), examples_complete),
)
