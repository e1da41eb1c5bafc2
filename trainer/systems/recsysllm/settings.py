"""The YAML of RecSysLLM (Chu et al. 2023): what `system: recsysllm` can set beside what all systems share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from recloom.data_shards.spans import MaskSettings
from recloom.trainer.config import BackbonesBlock, Block, RunConfig, Share, TrainingBlock
from recloom.trainer.config_rules import Rule, some_backbone
from recloom.trainer.systems.recsysllm.rules import RULES

MethodName = Literal["recsysllm", "token_masks", "permuted", "one_d", "sequential_only"]
FamilyName = Literal["rating", "sequential", "explanation", "review", "direct"]
FAMILIES: tuple[FamilyName, ...] = ("rating", "sequential", "explanation", "review", "direct")


class PeriodsBlock(Block):
    """What is shown of a long sequence: 10 % long-term, 30 % medium-term, 60 % short-term."""

    by: Literal["time", "position"] = Field(
        default="time",
        description="Days back from the latest item; or thirds of the sequence, where there "
        "are positions instead of times.",
    )
    short_days: float = Field(default=7.0, ge=0)
    medium_days: float = Field(default=90.0, ge=0)
    shares: tuple[float, float, float] = Field(
        default=(0.1, 0.3, 0.6), description="Of history_items, for long, medium and short term."
    )


class CorpusBlock(Block):
    """Tables to text (data phase)."""

    families: tuple[FamilyName, ...] | None = Field(
        default=None, min_length=1, description="Task families; empty: all that the data can feed."
    )
    templates: str = Field(
        default="recsysllm",
        description="A folder with a file of templates for each family: one of "
        "data_shards/textualize/templates, or a path.",
    )
    item_noun: str = Field(default="item", description="What an item is called: movie, product, item.")
    verb: str = Field(default="bought", description="What a user has done with items.")
    history_items: PositiveInt = Field(default=20, description="Items of a sequence shown.")
    periods: PeriodsBlock = PeriodsBlock()
    details: tuple[str, ...] | None = Field(
        default=None, description="Item attributes shown; empty: all but descriptions."
    )
    title_words: PositiveInt | None = Field(
        default=None, description="Titles are cut to so many words; empty: whole titles."
    )
    review_words: PositiveInt = Field(default=300, description="Reviews shown are cut to so many words.")
    negatives: PositiveInt = Field(default=99, description="Candidates of a direct prompt beside the target.")
    jitter: bool = Field(default=True, description="Gaussian noise on the ratings trained on, as in P5.")
    samples: PositiveInt | None = Field(
        default=None, description="Training samples of each family, drawn; empty: one a training row."
    )
    valid_samples: int = Field(default=100, ge=0, description="Of each family, for the validation loss.")
    seed: int = Field(
        default=0, ge=0, description="Of all draws of the corpus; the same for all seeds of a run."
    )


class LoraBlock(Block):
    """A low-rank update instead of all weights; the tables of marks and intra ids are trained in any case."""

    r: PositiveInt = Field(default=8, description="Rank of the update; 2 to 32 in the paper.")
    lora_alpha: PositiveInt = 16
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    modules: tuple[str, ...] | Literal["all-linear"] = Field(
        default="all-linear", description="Layers adapted; the paper's four are all linear ones of a block."
    )


class PretrainBlock(TrainingBlock):
    """Blank infilling (training phase)."""

    epochs: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-5, gt=0)
    context: int = Field(default=1024, ge=16, description="Longest text, tokens; a longer one is an error.")
    pack_length: int = Field(
        default=1024, ge=16, description="Text tokens in a packed row; masks add two tokens a span to it."
    )
    answer_share: Share = Field(
        default=0.5,
        description="Probability that a sample's one blank is its answer; else the mixture masks the text.",
    )
    table_rate: float = Field(
        default=10.0,
        gt=0,
        description="How many times faster than the model the tables learn: the intra rows start at zero.",
    )
    lora: LoraBlock | None = Field(default=None, description="Empty: all weights are trained.")


class AskBlock(Block):
    """What is asked at test (inference phase)."""

    users: PositiveInt | None = Field(
        default=None, description="Test rows of each family, a sample; empty: all."
    )
    prompts: tuple[Literal["seen", "unseen"], ...] = Field(
        default=("seen", "unseen"),
        min_length=1,
        description="The first prompt that was trained on, and the one held out for zero-shot.",
    )
    beams: PositiveInt = Field(default=20, description="Of a search among items.")
    free: bool = Field(
        default=False, description="Also ask for items without the trie: one greedy answer, any text."
    )
    max_tokens: PositiveInt = Field(default=48, description="Longest free answer.")
    batch: PositiveInt = Field(
        default=4, description="Questions answered together; memory grows with batch x beams pasts."
    )


class EvaluateBlock(Block):
    ks: tuple[PositiveInt, ...] = Field(default=(1, 5, 10), min_length=1)


class RecSysLLMConfig(RunConfig):
    """One experiment with RecSysLLM and its ablations."""

    system: Literal["recsysllm"]
    positive_rating: float | None = Field(
        default=None, description="Least rating that counts as taken; empty: every interaction."
    )
    methods: tuple[MethodName, ...] = Field(
        default=("recsysllm",), min_length=1, description="What is compared."
    )
    backbones: BackbonesBlock = BackbonesBlock()
    corpus: CorpusBlock = CorpusBlock()
    mask: MaskSettings = MaskSettings()
    pretrain: PretrainBlock = PretrainBlock()
    ask: AskBlock = AskBlock()
    evaluate: EvaluateBlock = EvaluateBlock()

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        """A conventional recommender is only there to be compared with, so none need be."""
        return (*(rule for rule in super().rules() if rule.find is not some_backbone), *RULES)
