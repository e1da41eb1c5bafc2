"""The YAML of Llama4Rec (Luo et al. 2024): what `system: llama4rec` can set beside what all systems share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recloom.trainer.config import Block, Cutoff, RunConfig, Share, TrainingBlock
from recloom.trainer.config_rules import Rule
from recloom.trainer.systems.llama4rec.rules import RULES


class PromptsBlock(Block):
    listwise_template: str = Field(
        default="listwise", description="A YAML in data_shards/textualize/templates, or a path."
    )
    rating_template: str = Field(default="rating", description="Likewise, for rating prediction.")
    attributes_template: str = Field(default="attributes", description="Likewise, for item attributes.")
    item_noun: str = Field(default="movie", description="What an item is called in prompts.")
    history_items: int = Field(default=20, ge=1, description="Latest history items shown.")
    disliked_items: int = Field(default=5, ge=0, description="Latest disliked items shown; 0: none.")
    candidates: int = Field(default=10, ge=2, description="k': items the LLM ranks.")
    answer_items: int = Field(
        default=10, ge=1, description="Titles in a listwise answer (at most `candidates`)."
    )
    similar_user: bool = Field(
        default=True, description="Prompt augmentation: the most similar user's history."
    )
    similar_items: int = Field(default=10, ge=1, description="Items shown of the similar user.")
    backbone_prediction: bool = Field(
        default=True, description="Prompt augmentation: the backbone's prediction."
    )
    prediction_items: int = Field(default=10, ge=1, description="Items shown of the backbone's ranking.")


class InstructionsBlock(Block):
    per_task: int = Field(
        default=5000,
        ge=1,
        description="Training prompts of listwise ranking, which the top-k backbones share, and as many of "
        "rating prediction (5,000 each and data set in the paper).",
    )
    also: tuple[str, ...] = Field(
        default=(), description="Runs on other data sets whose training prompts are mixed in."
    )
    limit: int | None = Field(
        default=None, ge=1, description="Training prompts in all, a seeded sample; empty: every one."
    )
    holdback: int = Field(
        default=10, ge=1, description="Latest training items of a user kept from the cross-fitted backbone."
    )
    rated_candidates: int = Field(
        default=5, ge=1, description="Most held-back items among a prompt's candidates."
    )
    min_interactions: int = Field(
        default=3, ge=2, description="Users with fewer training interactions give no prompt."
    )
    validation: int = Field(default=64, ge=0, description="Prompts a task kept for the validation loss.")
    samples_per_shard: int = Field(default=2000, ge=1, description="Samples in one shard.")


class InstructionTraining(TrainingBlock):
    ift: Literal["separate", "shared"] = Field(
        default="separate",
        description="The IFT baseline: a model of its own tuned on plain prompts (the paper), or the one "
        "model tuned on plain and augmented prompts in equal parts and asked with plain ones.",
    )


class AttributesBlock(Block):
    """Item attributes that the LLM fills in (section 4.2.3)."""

    names: tuple[str, ...] = Field(min_length=1, description="The attributes, such as director and star.")
    examples: tuple[dict[str, str], ...] = Field(
        min_length=1, description="Items to learn the format from: `title` and every attribute."
    )
    items: int | None = Field(
        default=None, ge=1, description="Items asked about, the most rated first; all when empty."
    )
    max_tokens: int = Field(default=40, ge=1, description="Longest answer.")


class AugmentBlock(Block):
    direct_pairs: int = Field(
        default=1, ge=0, description="Pairs of un-interacted items ranked for a user (section 4.2.1)."
    )
    sequential_items: int = Field(
        default=1, ge=0, description="Items inserted into a user's sequence (section 4.2.2)."
    )
    sequential_candidates: int = Field(
        default=10, ge=2, description="k un-interacted items the LLM picks from."
    )
    users: int | None = Field(
        default=None, ge=1, description="Users augmented, a seeded sample; all when empty."
    )
    reuse: str | None = Field(
        default=None, description="A finished run on the same data whose augmentation files serve here."
    )
    attributes: AttributesBlock | None = Field(
        default=None, description="Item attributes by in-context learning, for rating backbones."
    )


class RankBlock(Block):
    top_k: int = Field(default=10, ge=2, description="k': the backbone's candidates that the LLM re-ranks.")
    reachable_only: bool = Field(
        default=False,
        description="Ask the LLM only for users whose target is among the k' candidates: every other user "
        "scores 0 under any order, so the metrics are the same over all users at a fraction of the cost.",
    )
    ranking: Literal["listwise", "pointwise", "best"] = Field(
        default="listwise",
        description="The LLM orders the candidates, or rates each one, or whichever is better on validation.",
    )
    rating_users: int | None = Field(
        default=None, ge=1, description="Users of the rating task asked, a seeded sample."
    )
    rating_rule: Literal["expected", "integer"] = Field(
        default="expected",
        description="Expectation over the rating tokens, or the likeliest rating (the paper).",
    )
    constrained: bool = Field(
        default=True,
        description="Listwise answers can only be candidates' titles, each once (a trie over their tokens).",
    )
    max_answer_tokens: int = Field(
        default=256, ge=1, description="Longest listwise answer where it is not constrained."
    )


class EvaluateBlock(Block):
    ks: tuple[Cutoff, ...] = Field(default=(3, 5), min_length=1)
    alpha_1: tuple[Share, ...] = Field(default=(0.1, 0.3, 0.5, 0.7, 0.9), min_length=1)
    alpha_2: tuple[Share, ...] = Field(default=(0.1, 0.3, 0.5, 0.7, 0.9), min_length=1)
    utility_c: float = Field(default=1.0, gt=0, description="C of section 4.4.2.")
    ablation: bool = Field(
        default=False, description="Also without data augmentation, prompt augmentation, adaptive weights."
    )


class Llama4RecConfig(RunConfig):
    """One experiment with Llama4Rec and its baselines."""

    system: Literal["llama4rec"]
    disliked_below: float | None = Field(
        default=3.0, description="Ratings below it count as disliked in prompts."
    )
    prompts: PromptsBlock = PromptsBlock()
    instructions: InstructionsBlock = InstructionsBlock()
    training: InstructionTraining = InstructionTraining()
    augment: AugmentBlock = AugmentBlock()
    rank: RankBlock = RankBlock()
    evaluate: EvaluateBlock = EvaluateBlock()

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        return (*super().rules(), *RULES)
