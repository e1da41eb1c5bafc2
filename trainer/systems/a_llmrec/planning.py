"""A-LLMRec for the plan: how long its questions get, how many there are, what is trained beside the LLM.

An estimate: a quoted title with its line end has about 13 tokens in MovieLens and 25 in Amazon's Beauty
of 2014 (SmolLM2's tokenizer; a sixth more with LLaMA-2's), two a word where titles are cut. Some Amazon
titles are many times longer than most.
"""

from __future__ import annotations

from recloom.data_shards.textualize import next_item
from recloom.trainer.planning.low_rank import lora_parts
from recloom.trainer.planning.memory import SmallParts
from recloom.trainer.planning.outline import Asking, Outline, Training
from recloom.trainer.planning.shapes import ModelSize
from recloom.trainer.planning.tokens import Corpus, make_corpus
from recloom.trainer.planning.users import recommender_width
from recloom.trainer.systems.a_llmrec.methods import projected
from recloom.trainer.systems.a_llmrec.planned_users import learned_users, num_questions
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig

MOVIELENS_TITLE, TITLE = 13, 25
WORD, QUOTES = 2, 3
WORDS, USER = 27, 6  # the template's; its sentence about the user's vector, with the vector
LONGEST = 1.6  # the longest prompt over the estimate


def outline(config: ALLMRecConfig, model: ModelSize | None) -> Outline:
    """Raises UserError when `lora.modules` names no layer of the model."""
    learned = learned_users(config)
    trainings = tuple(make_trainings(config, model, num_questions(config, learned)))
    negatives = config.scenario.negatives
    asked = prompt_tokens(config, True, negatives)
    lines = (("users", f"{learned.users:,} to learn from: {learned.origin}"),)
    return Outline(
        templates=(
            (config.prompts.template, next_item.FAMILY),
            (config.prompts.genres_template, next_item.GENRES),
        ),
        named_templates=1 if config.genres is None else 2,
        trainings=trainings,
        untrained=untrained(config, trainings),
        asking=Asking(
            config.rank.engine,
            int(LONGEST * asked),
            "the stage rank",
            logits=(negatives + 1) * title_tokens(config),
        ),
        lines=lines if trainings and config.scenario.trained is None else (),
    )


def untrained(config: ALLMRecConfig, trainings: tuple[Training, ...]) -> str | None:
    if config.scenario.trained is not None:
        return f"the models of {config.scenario.trained} answer"
    return None if trainings else "the LLM answers as it is"


def make_trainings(config: ALLMRecConfig, model: ModelSize | None, questions: int) -> list[Training]:
    """Stage 2 of every projected method, and TALLRec."""
    found, names = [], projected(config)
    if names:
        corpora = tuple(make_questions(config, name, "project", questions) for name in names)
        small = projection_parts(config, model) if model else None
        found.append(Training("project", config.project, corpora, small))
    if "tallrec" in config.methods:
        small = lora_parts(config.lora, model) if model else None
        corpora = (make_questions(config, "tallrec", "lora", questions),)
        found.append(Training("lora", config.lora, corpora, small))
    return found


def make_questions(config: ALLMRecConfig, name: str, block: str, questions: int) -> Corpus:
    negatives = config.project.negatives or config.scenario.negatives
    full = prompt_tokens(config, block == "project", negatives)
    return make_corpus(name, questions, [full], title_tokens(config), getattr(config, block), LONGEST)


def title_tokens(config: ALLMRecConfig) -> int:
    """Tokens of a quoted title with its line end; of an answer with its end token."""
    whole = MOVIELENS_TITLE if config.data.source == "movielens" else TITLE
    words = config.prompts.title_words
    return whole if words is None else min(whole, WORD * words + QUOTES)


def prompt_tokens(config: ALLMRecConfig, soft: bool, negatives: int) -> int:
    """Tokens of a full question with its answer: history, target and negatives, and the target again.

    soft: with one soft token for the user and one beside each title that is shown.
    """
    shown = config.prompts.history_items + 1 + negatives
    tokens = title_tokens(config) * (shown + 1) + WORDS
    with_user, with_items = config.project.user_vector, config.project.item_vectors != "none"
    return tokens + soft * (with_user * USER + with_items * shown)


def projection_parts(config: ALLMRecConfig, model: ModelSize) -> SmallParts:
    """F_U and F_I (eq. 7) of the method where they are larger."""
    project, width = config.project, recommender_width(config)
    hidden, tokens = project.hidden or model.hidden, model.hidden
    item_widths = {"mlp_llm": width, "a_llmrec": config.align.width}
    inputs = [width] if project.user_vector else []
    if project.item_vectors != "none":
        inputs.append(max(item_widths[name] for name in projected(config)))
    parameters = sum(hidden * (wide + 3) + tokens * (hidden + 1) for wide in inputs)
    return SmallParts(parameters, hidden * max(tokens, *inputs))
