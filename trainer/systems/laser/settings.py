"""The YAML of Laser (Zhang et al. 2024): what `system: laser` can set beside what all systems share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from recloom.trainer.config import Beta, Block, RunConfig, Share, TrainingBlock
from recloom.trainer.config_rules import Rule
from recloom.trainer.systems.laser.mformer import MFormerSettings
from recloom.trainer.systems.laser.rules import RULES

MethodName = Literal[
    "laser", "no_moe", "no_mformer", "no_prefix", "no_stage_1", "no_stage_2", "average", "hard_eos"
]
Pooling = Literal["suffix", "mean", "eos"]


class TextsBlock(Block):
    """The texts that stand for users and items (section 3.1.1)."""

    template: str = Field(
        default="browsing", description="A YAML in data_shards/textualize/templates, or a path."
    )
    item_template: str | None = Field(
        default=None, description="Another template for single items (Table 6); empty: the same."
    )
    attributes: tuple[str, ...] | None = Field(
        default=None,
        description="Item attributes in brackets behind the title; empty: brand, category, where they are.",
    )
    start_token: str | None = Field(
        default=None,
        description="Token before everything, for a tokenizer that begins texts with none; empty: its start "
        "token. Best is what stood between documents when the LLM was pretrained.",
    )
    item_noun: str = Field(default="item", description="What an item is called: movie, game, item.")
    history_items: PositiveInt = Field(default=50, description="Latest history items shown.")
    title_words: PositiveInt | None = Field(
        default=None, description="Titles are cut to so many words; empty: whole titles."
    )
    attribute_words: PositiveInt | None = Field(default=None, description="Likewise, each attribute's value.")


class LearnBlock(Block):
    """Who is learned from and who is asked; samples are drawn with `seed`, not with the run's."""

    targets: Literal["last", "all"] = Field(
        default="last", description="Items of a training sequence that are predicted."
    )
    share: Share = Field(
        default=1.0,
        description="Share of the users that anything is learned from, the backbone too (Figure 3).",
    )
    users: PositiveInt | None = Field(
        default=None, description="Users that the LLM is trained on, a sample; empty: all."
    )
    samples: PositiveInt | None = Field(
        default=None, description="Training samples of these users, drawn from all of them; empty: all."
    )
    validation: PositiveInt | None = Field(
        default=None, description="Users of whom NDCG@10 picks the epoch, a sample; empty: all."
    )
    test: PositiveInt | None = Field(default=None, description="Test users asked, a sample; empty: all.")
    seed: int = Field(default=0, ge=0, description="Of the samples; the same for all seeds of a run.")


class BiTuneBlock(Block):
    """What is trained around the LLM, and its loss (sections 3.1.2 and 3.2)."""

    mformer: MFormerSettings = MFormerSettings()
    temperature: float = Field(default=0.05, gt=0, description="tau of equation (8).")
    balance_weight: float = Field(default=0.01, ge=0, description="lambda of equation (12).")
    balance_over: Literal["user", "row"] = Field(
        default="user",
        description="N of equations (10) and (11): one user's items, as written; or the items of a packed "
        "row's users together, as in Switch, which is what spreads users over the experts.",
    )
    prefix_scale: float = Field(
        default=1.0,
        gt=0,
        description="Size of the prefix at the start, in root mean squares of the LLM's tokens.",
    )
    start_from: str | None = Field(
        default=None,
        description="A finished run, maybe on other data, whose trained weights are the start (Figure 3).",
    )


class StageBlock(TrainingBlock):
    """A training stage (section 3.3.2). A packed row holds as many users as fit."""

    epochs: int = Field(default=15, ge=0, description="0 leaves the stage out.")
    learning_rate: float = Field(default=1e-4, gt=0)
    schedule: Literal["cosine", "constant"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    gradient_clipping: float = Field(default=0.0, ge=0)
    gradient_checkpointing: bool = False
    pack_length: int = Field(default=16, ge=16, description="Tokens in a packed row; 16: one user a row.")
    rows_per_step: int = Field(default=4, ge=1, description="Rows an optimizer step, over all ranks.")
    log_every: int = Field(default=10, ge=1, description="Steps between console lines.")
    epoch_samples: PositiveInt | None = Field(
        default=None,
        description="An epoch takes at most so many training samples, the next one others, so that item "
        "embeddings are recomputed and weights judged more often than once a pass; empty: all.",
    )


class SecondStageBlock(StageBlock):
    """The same against fixed item embeddings."""

    epochs: int = Field(default=5, ge=0, description="0 leaves the stage out.")


class EmbedBlock(Block):
    pack_length: int = Field(default=2048, ge=16, description="Tokens in a row of texts that are only read.")
    chunk: PositiveInt = Field(
        default=1024, description="Texts between two savings of a pass over all items, all ranks together."
    )


class RankBlock(Block):
    engine: Literal["hf", "vllm"] = Field(
        default="hf", description="Users at test: Hugging Face in this process, or vLLM's pooling."
    )
    mask_seen: bool = Field(default=False, description="Leave items out that the user already has.")


class EvaluateBlock(Block):
    ks: tuple[PositiveInt, ...] = Field(default=(10,), min_length=1)


class LaserConfig(RunConfig):
    """One experiment with Laser, its ablations and its backbone."""

    system: Literal["laser"]
    positive_rating: float | None = Field(
        default=None, description="Least rating that counts; empty: every interaction."
    )
    methods: tuple[MethodName, ...] = Field(
        default=("laser",), min_length=1, description="What is compared with the backbone (Tables 4 and 5)."
    )
    baselines: tuple[str, ...] = Field(
        default=(), description="Further recommenders ranked beside the backbone, at their defaults."
    )
    texts: TextsBlock = TextsBlock()
    learn: LearnBlock = LearnBlock()
    bitune: BiTuneBlock = BiTuneBlock()
    stage_1: StageBlock = StageBlock()
    stage_2: SecondStageBlock = SecondStageBlock()
    embed: EmbedBlock = EmbedBlock()
    rank: RankBlock = RankBlock()
    evaluate: EvaluateBlock = EvaluateBlock()

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        return (*super().rules(), *RULES)
