"""The YAML of A-LLMRec (Kim et al. 2024): what `system: a_llmrec` can set beside what all systems share."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from recloom.trainer.config import Beta, Block, RunConfig, TrainingBlock
from recloom.trainer.config_rules import Rule
from recloom.trainer.sentence_encoder import MINILM
from recloom.trainer.systems.a_llmrec.alignment import PROFILES, AlignmentSettings, Profile
from recloom.trainer.systems.a_llmrec.rules import RULES

MethodName = Literal["llm_only", "tallrec", "mlp_llm", "a_llmrec"]

STAGE_2: dict[Profile, dict[str, Any]] = {
    "paper": {"rows_per_step": 4, "epochs": 5},
    "released": {"rows_per_step": 2, "epochs": 10},
}
TEXT_STYLE: dict[Profile, str] = {"paper": "labelled", "released": "plain"}


class ScenarioBlock(Block):
    """Who is learned from and who is asked (data_shards/scenarios.py)."""

    name: str = Field(
        default="overall",
        description="overall (reported for warm and cold targets too), cold_users, few_shot_K, cross_domain.",
    )
    negatives: PositiveInt = Field(default=19, description="Candidates beside the target.")
    seed: int = Field(
        default=0, ge=0, description="Of candidates and samples; the same for all seeds of a run."
    )
    users: PositiveInt | None = Field(default=None, description="Test users asked, a sample; empty: all.")
    group_users: PositiveInt | None = Field(
        default=None,
        description="Test users asked in each of warm and cold, a sample; empty: those of `users`.",
    )
    truncated_cold_users: int = Field(
        default=0,
        ge=0,
        description="cold_users: cut so many users down to three interactions; 0: those that have 3.",
    )
    full_catalogue: bool = Field(
        default=False,
        description="Also rank the whole catalogue: the backbone alone, and the LLM over the first "
        "`negatives` + 1 of the backbone's ranking.",
    )
    trained: str | None = Field(
        default=None,
        description="cross_domain: a finished run on another data set, whose models answer here.",
    )


class ItemTextBlock(Block):
    """The text of an item that the sentence encoder reads (Q_i of section 4.1)."""

    style: Literal["labelled", "plain"] = Field(
        default="labelled", description="'Title: t, Description: d' (paper) or 't, d' (released code)."
    )
    attributes: tuple[str, ...] | None = Field(
        default=None,
        description="Item attributes behind the title; empty: `description`, or all where there is none.",
    )
    encoder: str = Field(
        default=MINILM, description="Built-in name, or a local sentence-transformers folder."
    )


class PromptsBlock(Block):
    template: str = Field(
        default="next_item", description="A YAML in data_shards/textualize/templates, or a path."
    )
    genres_template: str = Field(default="genres", description="Likewise, for the favourite genres.")
    item_noun: str = Field(default="item", description="What an item is called: movie, game, item.")
    verb: str = Field(default="bought", description="What users did: watched, played, bought.")
    history_items: PositiveInt = Field(default=10, description="Latest history items shown.")
    soft_token: Literal["behind", "before"] = Field(
        default="behind",
        description="Where an item's vector stands: behind its title (Figure 3), or before it, where a "
        "causal LLM sees it while it reads the title; small ones learn sooner so.",
    )
    title_words: PositiveInt | None = Field(
        default=None, description="Titles are cut to so many words; empty: whole titles."
    )


class AlignBlock(AlignmentSettings):
    """Stage 1: its losses (`AlignmentSettings`) and its training."""

    epochs: PositiveInt = 10
    batch_size: PositiveInt = Field(default=32, description="Sequences a step.")
    learning_rate: float = Field(default=1e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    train_text_encoder: bool = Field(default=True, description="Off: 'Freeze SBERT' of Table 6.")
    text_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Of the sentence encoder's products in training; weights are float32 either way.",
    )
    users: PositiveInt | None = Field(default=None, description="Users trained on, a sample; empty: all.")
    checkpoint_every: int = Field(default=50, ge=0, description="Steps between checkpoints; 0: none.")


class PromptTraining(TrainingBlock):
    """What the paper sets alike for all that is trained on prompts; one prompt a row."""

    epochs: int = Field(default=5, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    schedule: Literal["cosine", "constant"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    gradient_clipping: float = Field(default=0.0, ge=0)
    gradient_checkpointing: bool = False
    pack_length: int = Field(default=16, ge=16, description="Tokens in a packed row; 16: one prompt a row.")
    rows_per_step: int = Field(default=4, ge=1, description="Rows an optimizer step, over all ranks.")


class ProjectBlock(PromptTraining):
    """Stage 2: F_U and F_I into the token space of the frozen LLM."""

    betas: tuple[Beta, Beta] = (0.9, 0.98)
    user_vector: bool = Field(default=True, description="Off: row 2 of Table 7.")
    item_vectors: Literal["joint", "none", "random"] = Field(
        default="joint",
        description="The soft token behind a title; none and random: rows 3 and 4 of Table 7.",
    )
    hidden: PositiveInt | None = Field(
        default=None, description="Width between the two layers of F_U and F_I; empty: the LLM's."
    )
    token_scale: float = Field(
        default=1.0,
        gt=0,
        description="Size of soft tokens at the start, in root mean squares of the LLM's tokens.",
    )
    targets: Literal["last", "all"] = Field(
        default="last", description="Items of a sequence that are asked for."
    )
    negatives: PositiveInt | None = Field(
        default=None, description="Candidates beside the target in training prompts; empty: as at test."
    )
    draws: PositiveInt = Field(default=1, description="Prompts a target, each with its own negatives.")
    users: PositiveInt | None = Field(default=None, description="Users trained on, a sample; empty: all.")
    validation: int = Field(default=64, ge=0, description="Validation prompts of which the loss is told.")


class LoraBlock(PromptTraining):
    """TALLRec: low-rank adaptation of the LLM on prompts of text only, otherwise trained as stage 2."""

    r: PositiveInt = Field(default=8, description="Rank of the update.")
    lora_alpha: PositiveInt = 16
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    modules: tuple[str, ...] = Field(
        default=("q_proj", "v_proj"), min_length=1, description="Layers adapted."
    )


class RankBlock(Block):
    engine: Literal["hf", "vllm"] = Field(
        default="hf", description="Hugging Face in this process, or bulk passes of vLLM (no tallrec)."
    )


class GenresBlock(Block):
    """Favourite genres in free text (section 5.4.4)."""

    users: PositiveInt = Field(default=5, description="Test users asked.")
    max_tokens: PositiveInt = Field(default=48, description="Longest answer.")


class EvaluateBlock(Block):
    ks: tuple[PositiveInt, ...] = Field(default=(1, 5, 10), min_length=1)


class ALLMRecConfig(RunConfig):
    """One experiment with A-LLMRec and its baselines."""

    system: Literal["a_llmrec"]
    profile: Profile = Field(
        default="paper", description="What is left unsaid: as in the paper, or the authors' code."
    )
    positive_rating: float | None = Field(
        default=None, description="Least rating that counts; empty: every interaction."
    )
    methods: tuple[MethodName, ...] = Field(
        default=("llm_only", "mlp_llm", "a_llmrec"),
        min_length=1,
        description="What is compared with the backbone.",
    )
    scenario: ScenarioBlock = ScenarioBlock()
    item_text: ItemTextBlock = ItemTextBlock()
    prompts: PromptsBlock = PromptsBlock()
    align: AlignBlock = AlignBlock()
    project: ProjectBlock = ProjectBlock()
    lora: LoraBlock = LoraBlock()
    rank: RankBlock = RankBlock()
    genres: GenresBlock | None = None
    evaluate: EvaluateBlock = EvaluateBlock()

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        return (*super().rules(), *RULES)

    @model_validator(mode="before")
    @classmethod
    def fill_in_profile(cls, raw: Any) -> Any:
        """What the profile settles, below what the YAML says."""
        profile = raw.get("profile", "paper") if isinstance(raw, dict) else None
        if not isinstance(profile, str) or profile not in PROFILES:
            return raw
        settled = {
            "align": PROFILES[profile],
            "project": STAGE_2[profile],
            "lora": STAGE_2[profile],
            "item_text": {"style": TEXT_STYLE[profile]},
        }
        filled = {
            name: {**values, **(raw.get(name) or {})}
            for name, values in settled.items()
            if is_block(raw, name)
        }
        return {**raw, **filled}


def is_block(raw: dict[str, Any], name: str) -> bool:
    """False for something that is no block: pydantic then says so."""
    return raw.get(name) is None or isinstance(raw[name], dict)
