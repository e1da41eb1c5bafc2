"""The typed schema of the YAML: what all systems share.

Every setting and its default is here, except those that belong to one system
(`trainer/systems/NAME/settings.py`), one data source (`data_shards/sources/NAME.py: Settings`) or one
backbone (`trainer/collaborative/NAME.py: Settings`): adding one of the last two is adding one file.
`config_schema.py` puts the schema of a YAML together, `config_io.py` reads the YAML into it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from recloom.trainer.config_rules import COMMON_RULES, Rule, broken_rules
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
        description="Attention of packed rows: inside of samples only (one flash attention on GPUs, else a "
        "call a sample), or one call under a dense block mask.",
    )
    liger: bool = Field(
        default=False,
        description="Train with Liger's fused norms, rotations and gated layers; needs a GPU and the package "
        "liger-kernel.",
    )
    compile: bool = Field(
        default=False,
        description="Train with norms, rotations and gated layers compiled by torch, each into one pass over "
        "memory; needs a C++ compiler, and half a minute at the first start.",
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


class TrainingBlock(Block):
    """One training of the LLM; a system may add to it."""

    epochs: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="Learning rate behind the warm-up."
    )
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
    """How the ranks share the work: ZeRO over data-parallel ranks, tensor parallelism inside of them."""

    zero_stage: Literal[0, 1, 2, 3] = Field(default=3, description="What DeepSpeed ZeRO partitions.")
    tensor: int = Field(
        default=1,
        ge=1,
        description="Tensor parallelism: so many consecutive ranks share every layer and read the same rows. "
        "A divisor of the ranks and of the model's key-value heads; best within a node. 1: none.",
    )
    cpu_ranks: int = Field(default=2, ge=1, description="Ranks started on a machine without a GPU.")
    offload_optimizer: bool = Field(default=False, description="Optimizer state in host memory (GPU runs).")
    offload_parameters: bool = Field(
        default=False, description="Weights in host memory between uses; ZeRO-3 only (GPU runs)."
    )
    offload_folder: str | None = Field(
        default=None,
        description="A folder on each node's own NVMe disk, which then holds what is offloaded in place of "
        "host memory (ZeRO-Infinity); ZeRO-3 only.",
    )
    overlap_communication: bool | None = Field(
        default=None,
        description="Gradients travel while others are computed, at the price of a second bucket. "
        "Empty: at ZeRO-3 only.",
    )
    hpz_size: int = Field(
        default=1,
        ge=1,
        description="ZeRO++ hpZ: a second copy of the weights is divided among so many ranks, those of a "
        "node, so that the backward pass gathers weights inside of it. ZeRO-3 only; 1: none.",
    )
    quantized_weights: bool = Field(
        default=False,
        description="ZeRO++ qwZ: weights are gathered as 8-bit blocks. ZeRO-3 on GPUs; changes the numbers.",
    )
    quantized_gradients: bool = Field(
        default=False,
        description="ZeRO++ qgZ: gradients are reduced as 4-bit blocks. ZeRO-3 on GPUs; changes the numbers.",
    )
    collective_timeout: int = Field(
        default=10, ge=1, description="Minutes before a hanging collective ends the run."
    )


class RunConfig(Block):
    """One experiment, as far as every system knows it; each system has a subclass with its own blocks.

    `data` and `backbones` are narrowed by `schema_for` to what the YAML names.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="Letters, digits and _.- behind the first; the run folder is named after it.",
    )
    system: str = Field(description="A folder of trainer/systems.")
    seed: int = Field(default=2024, ge=0)
    seeds: tuple[Seed, ...] = Field(
        default=(), description="Repeat the run with each of these; empty: `seed` alone."
    )
    run_dir: str | None = Field(default=None, description="Where the run is kept; runs/NAME when empty.")
    data: Any
    positive_rating: float | None = Field(
        default=4.0, description="Least rating of a positive for top-k; empty: every one."
    )
    model: ModelBlock
    backbones: BackbonesBlock
    parallel: ParallelBlock = ParallelBlock()
    bulk: BulkSettings = BulkSettings()

    @property
    def folder(self) -> Path:
        return Path(self.run_dir or f"runs/{self.name}")

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        """The rules between fields; a system adds its own."""
        return COMMON_RULES

    @model_validator(mode="after")
    def check_together(self) -> RunConfig:
        problems = broken_rules(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self
