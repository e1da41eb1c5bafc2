"""What RecSysLLM's settings must hold together (see trainer/config_rules.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom.trainer.config_rules import Rule

if TYPE_CHECKING:
    from recloom.trainer.systems.recsysllm.settings import RecSysLLMConfig


def methods_differ(config: RecSysLLMConfig) -> str | None:
    if len(set(config.methods)) == len(config.methods):
        return None
    return f"methods = {list(config.methods)}: one is there twice, remove it"


def families_differ(config: RecSysLLMConfig) -> str | None:
    families = config.corpus.families
    if families is None or len(set(families)) == len(families):
        return None
    return f"corpus.families = {list(families)}: one is there twice, remove it"


def single_task_is_there(config: RecSysLLMConfig) -> str | None:
    families = config.corpus.families
    if "sequential_only" not in config.methods or families is None or "sequential" in families:
        return None
    return "methods: sequential_only needs the family sequential, add it to corpus.families"


def shares_sum(config: RecSysLLMConfig) -> str | None:
    shares = config.corpus.periods.shares
    if min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6:
        return None
    return f"corpus.periods.shares = {list(shares)}: three shares that add up to 1 are needed, change them"


def periods_in_order(config: RecSysLLMConfig) -> str | None:
    periods = config.corpus.periods
    if periods.short_days <= periods.medium_days:
        return None
    return (
        f"corpus.periods.short_days = {periods.short_days:g}: it is longer than medium_days = "
        f"{periods.medium_days:g}, swap them"
    )


def ranking_is_long_enough(config: RecSysLLMConfig) -> str | None:
    longest = max(config.evaluate.ks)
    if longest <= config.ask.beams:
        return None
    return (
        f"evaluate.ks = {list(config.evaluate.ks)}: a search with ask.beams = {config.ask.beams} finds no "
        f"more items than that, raise it to {longest}"
    )


def prompts_differ(config: RecSysLLMConfig) -> str | None:
    prompts = config.ask.prompts
    if len(set(prompts)) == len(prompts):
        return None
    return f"ask.prompts = {list(prompts)}: one is there twice, remove it"


def answers_fit(config: RecSysLLMConfig) -> str | None:
    """The table of intra ids reaches as far as the longest text."""
    longest = config.pretrain.context
    if config.ask.max_tokens <= longest:
        return None
    return (
        f"ask.max_tokens = {config.ask.max_tokens}: an answer longer than the longest text trained on, "
        f"pretrain.context = {longest}, lower it to {longest}"
    )


def rows_are_packed(config: RecSysLLMConfig) -> str | None:
    if config.model.attention == "packed":
        return None
    return (
        f"model.attention = {config.model.attention}: blank infilling has an attention of its own, "
        "leave the setting out"
    )


def no_tuned_model(config: RecSysLLMConfig) -> str | None:
    if config.model.tuned is None:
        return None
    return (
        f"model.tuned = '{config.model.tuned}': only Llama4Rec answers with another run's model, leave it out"
    )


RULES = (
    Rule(("methods",), methods_differ),
    Rule(("corpus.families",), families_differ),
    Rule(("methods", "corpus.families"), single_task_is_there),
    Rule(("corpus.periods.shares",), shares_sum),
    Rule(("corpus.periods.short_days", "corpus.periods.medium_days"), periods_in_order),
    Rule(("evaluate.ks", "ask.beams"), ranking_is_long_enough),
    Rule(("ask.prompts",), prompts_differ),
    Rule(("ask.max_tokens", "pretrain.context"), answers_fit),
    Rule(("model.attention",), rows_are_packed),
    Rule(("model.tuned",), no_tuned_model),
)
