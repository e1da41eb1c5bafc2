"""The typed schema of the YAML.

Every setting and its default is here, except those that belong to one data source
(`data_shards/sources/NAME.py: Settings`) or one backbone (`trainer/collaborative/NAME.py:
Settings`): adding one of these is adding one file. `config_io.py` reads YAML into this schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from recloom.data_shards.sources.registry import source_module, source_names
from recloom.trainer.collaborative.registry import backbone_module, backbone_names
from recloom.trainer.config_rules import broken_rules
from recloom.trainer.requests import BulkSettings

Beta = Annotated[float, Field(ge=0, lt=1)]
Cutoff = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Block(BaseModel):
    """A block of the YAML: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, coerce_numbers_to_str=True
    )


class OpenBlock(Block):
    """A block whose kind is unknown: its other keys can't be judged, so they are no errors of their own."""

    model_config = ConfigDict(extra="allow")


class ModelBlock(Block):
    path: str = Field(description="Built-in name, local Hugging Face folder, or Hugging Face id.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="Number format of weights in training."
    )
    attention: Literal["packed", "sdpa"] = Field(
        default="packed",
        description="Attention of packed rows: a causal call a sample, or one call under a dense block mask.",
    )
    tuned: str | None = Field(
        default=None,
        description="A finished run whose tuned models answer here; nothing is tuned then.",
    )


class BackbonesBlock(Block):
    """The conventional models, one a task; `read_config` narrows each to its own Settings."""

    direct: Any = None
    sequential: Any = None
    rating: Any = None

    @property
    def tasks(self) -> list[str]:
        return [task for task in ("direct", "sequential", "rating") if getattr(self, task) is not None]


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


class TrainingBlock(Block):
    ift: Literal["separate", "shared"] = Field(
        default="separate",
        description="The IFT baseline: a model of its own tuned on plain prompts (the paper), or the one "
        "model tuned on plain and augmented prompts in equal parts and asked with plain ones.",
    )
    epochs: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    gradient_clipping: float = Field(
        default=1.0, ge=0, description="Largest gradient norm; 0 switches clipping off."
    )
    gradient_checkpointing: bool = True
    context: int = Field(default=2048, ge=16, description="Longest sample, tokens; a longer one is an error.")
    pack_length: int = Field(default=2048, ge=16, description="Tokens in a packed row.")
    rows_per_step: int = Field(default=16, ge=1, description="Packed rows an optimizer step, over all ranks.")
    window: int = Field(default=1024, ge=1, description="Samples packed together.")
    log_every: int = Field(default=1, ge=1, description="Steps between console lines.")
    evaluate_every: int = Field(
        default=100, ge=0, description="Steps between validation losses; 0: only at the end."
    )
    checkpoint_every: int = Field(default=200, ge=0, description="Steps between checkpoints; 0: none.")
    keep_checkpoints: int = Field(default=1, ge=1)
    tensorboard: bool = True


class ParallelBlock(Block):
    zero_stage: Literal[0, 1, 2, 3] = Field(default=3, description="What DeepSpeed ZeRO partitions.")
    cpu_ranks: int = Field(default=2, ge=1, description="Ranks started on a machine without a GPU.")
    offload_optimizer: bool = Field(default=False, description="Optimizer state in host memory (GPU runs).")
    collective_timeout: int = Field(
        default=10, ge=1, description="Minutes before a hanging collective ends the run."
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


class RunConfig(Block):
    """One experiment. `data` and `backbones` are narrowed by `schema_for` to what the YAML names."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="Letters, digits and _.- behind the first; the run folder is named after it.",
    )
    system: Literal["llama4rec"]
    seed: int = Field(default=2024, ge=0)
    seeds: tuple[Seed, ...] = Field(
        default=(), description="Repeat the run with each of these; empty: `seed` alone."
    )
    run_dir: str | None = Field(default=None, description="Where the run is kept; runs/NAME when empty.")
    data: Any
    positive_rating: float | None = Field(
        default=4.0, description="Least rating of a positive for top-k; empty: every one."
    )
    disliked_below: float | None = Field(
        default=3.0, description="Ratings below it count as disliked in prompts."
    )
    model: ModelBlock
    backbones: BackbonesBlock
    prompts: PromptsBlock = PromptsBlock()
    instructions: InstructionsBlock = InstructionsBlock()
    training: TrainingBlock = TrainingBlock()
    parallel: ParallelBlock = ParallelBlock()
    bulk: BulkSettings = BulkSettings()
    augment: AugmentBlock = AugmentBlock()
    rank: RankBlock = RankBlock()
    evaluate: EvaluateBlock = EvaluateBlock()

    @property
    def folder(self) -> Path:
        return Path(self.run_dir or f"runs/{self.name}")

    @model_validator(mode="after")
    def check_together(self) -> RunConfig:
        problems = broken_rules(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self


def schema_for(raw: dict[str, Any]) -> type[RunConfig]:
    """The schema with `data` and `backbones` narrowed to the source and backbones that `raw` names.

    Unknown names are left to pydantic, which reports them beside all other errors.
    """
    return create_model(
        "RunConfig",
        __base__=RunConfig,
        data=(source_schema(raw.get("data")), ...),
        backbones=(backbones_schema(raw.get("backbones")), ...),
    )


def source_schema(raw: Any) -> Any:
    """The data block's type: `source: NAME` plus the Settings of that source."""
    names = source_names()
    name = raw.get("source") if isinstance(raw, dict) else None
    base = source_module(name).Settings if name in names else OpenBlock
    return narrowed("DataBlock", base, source=names)


def backbones_schema(raw: Any) -> Any:
    """The backbones block's type: each task's Settings by the `model` it names."""
    fields: dict[str, Any] = {}
    for task in ("direct", "sequential", "rating"):
        given = raw.get(task) if isinstance(raw, dict) else None
        if given is None:
            continue
        names = backbone_names(task)
        name = given.get("model") if isinstance(given, dict) else None
        base = backbone_module(name).Settings if name in names else OpenBlock
        fields[task] = (narrowed(task, base, model=names), ...)
    return create_model("BackbonesBlock", __base__=BackbonesBlock, **fields)


def narrowed(name: str, base: Any, **choices: list[str]) -> Any:
    """`base` with a required field for each choice that takes one of the given words."""
    fields: dict[str, Any] = {field: (Literal[tuple(words)], ...) for field, words in choices.items()}
    return create_model(name, __base__=base, **fields)
