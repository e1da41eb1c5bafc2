"""Llama4Rec for the plan: how long its prompts get, what is tuned on them.

An estimate: a title line of MovieLens has about 12 tokens (12.5 with LLaMA-2's tokenizer, 11.6 with
SmolLM2's), a title with its rating about 15; titles of other data sets may be longer.
"""

from __future__ import annotations

from collections.abc import Sequence

from recloom.data_shards.textualize import attributes, listwise, rating
from recloom.trainer.planning.outline import Asking, Outline, Training
from recloom.trainer.planning.shapes import ModelSize
from recloom.trainer.planning.tokens import Corpus, make_corpus
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig, PromptsBlock

TITLE, RATED_TITLE = 12, 15
WORDS = {False: 20, True: 30}  # headings; the prompt augmentations have their own


def outline(config: Llama4RecConfig, model: ModelSize | None) -> Outline:
    prompts, tuned = config.prompts, config.model.tuned
    training = Training("training", config.training, tuple(corpora(config)))
    asked = training.longest_tokens - answer_tokens(prompts) + config.rank.max_answer_tokens
    return Outline(
        templates=(
            (prompts.listwise_template, listwise.FAMILY),
            (prompts.rating_template, rating.FAMILY),
            (prompts.attributes_template, attributes.FAMILY),
        ),
        named_templates=2,
        trainings=(training,),
        untrained=None if tuned is None else f"the models of {tuned} answer",
        asking=Asking("vllm", asked, "the stages augment and rank"),
    )


def prompt_tokens(prompts: PromptsBlock, rating: bool, augmented: bool) -> int:
    """Tokens of a full prompt with its answer."""
    similar = prompts.similar_items if augmented and prompts.similar_user else 0
    if rating:
        return RATED_TITLE * (prompts.history_items + similar + 1) + WORDS[augmented]
    predicted = prompts.prediction_items if augmented and prompts.backbone_prediction else 0
    shown = prompts.history_items + prompts.disliked_items + prompts.candidates + similar + predicted
    return TITLE * (shown + prompts.answer_items) + WORDS[augmented]


def answer_tokens(prompts: PromptsBlock) -> int:
    """Tokens of a listwise answer, end token included."""
    return (TITLE + 1) * prompts.answer_items


def corpora(config: Llama4RecConfig) -> list[Corpus]:
    """One corpus a tuned model; the shared model sees plain and augmented prompts in equal parts."""
    if config.training.ift == "shared":
        return [corpus(config, "llama4rec", (True, False))]
    return [corpus(config, "llama4rec", (True,)), corpus(config, "ift", (False,))]


def corpus(config: Llama4RecConfig, name: str, kinds: Sequence[bool]) -> Corpus:
    """Ranking and rating prompts in equal numbers, each plain, augmented or both."""
    ratings = sorted({task == "rating" for task in config.backbones.tasks})
    full = [prompt_tokens(config.prompts, rating, kind) for rating in ratings for kind in kinds]
    num_prompts = config.instructions.per_task * len(ratings)
    answers = answer_tokens(config.prompts) * ratings.count(False) / len(ratings)
    return make_corpus(name, num_prompts, full, answers, config.training)
