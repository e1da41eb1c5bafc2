"""What a plan must know of a system: its `planning.py` defines `outline`, which returns an `Outline`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from recloom.data_shards.errors import UserError
from recloom.data_shards.textualize.template import Family
from recloom.data_shards.textualize.template_sets import TaskFamily
from recloom.trainer.config import RunConfig, TrainingBlock
from recloom.trainer.planning.memory import SmallParts
from recloom.trainer.planning.shapes import ModelSize
from recloom.trainer.planning.tokens import Corpus


@dataclass(frozen=True)
class Training:
    """The trainings that share the settings of one block of the YAML, a corpus a model.

    small: what is trained beside the frozen LLM; None where the LLM itself is.
    """

    block: str
    settings: TrainingBlock
    corpora: tuple[Corpus, ...]
    small: SmallParts | None = None

    @property
    def longest_tokens(self) -> int:
        return max(corpus.longest_tokens for corpus in self.corpora)


@dataclass(frozen=True)
class Asking:
    """How models are asked, on one GPU.

    longest_tokens: of a prompt with its answer. logits: rows of the vocabulary that Hugging Face holds at
    once; cached: tokens whose keys and values it holds at once, 0 where these are few. stages: the stages
    that ask, in words. lessened_by: a setting that makes both fewer.
    """

    engine: Literal["vllm", "hf"]
    longest_tokens: int
    stages: str
    logits: int = 0
    cached: int = 0
    lessened_by: str = ""


@dataclass(frozen=True)
class Outline:
    """A config of one system.

    templates: of the prompts, each with what it must be (a set of templates, for a task's family); the first
    `named_templates` are shown.
    untrained: why no training is needed, None where it is. lines: what to tell about the corpora.
    shortened_by: the setting that makes prompts shorter.
    """

    templates: Sequence[tuple[str, Family | TaskFamily]]
    named_templates: int
    trainings: tuple[Training, ...]
    untrained: str | None
    asking: Asking
    lines: tuple[tuple[str, str], ...] = ()
    shortened_by: str = "prompts.history_items"

    @property
    def needed(self) -> tuple[Training, ...]:
        return () if self.untrained else self.trainings


def outline_of(config: RunConfig, model: ModelSize | None) -> Outline:
    """What the config's system says. Raises UserError for a system without a `planning.py`."""
    name = f"recloom.trainer.systems.{config.system}.planning"
    if find_spec(name) is None:
        raise UserError(f"system = '{config.system}': no plan yet, start it with `recloom run`.")
    found: Outline = importlib.import_module(name).outline(config, model)
    return found
