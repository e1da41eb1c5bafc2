"""What the stages of every system depend on beside other stages: settings of a training, files, templates."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recloom.data_shards.textualize.template import template_path
from recloom.trainer.config import TrainingBlock
from recloom.trainer.config_rules import named_paths
from recloom.trainer.stages import Run, content_of, folder_state

# What only changes what is shown or kept must not make a finished training run again.
NO_INFLUENCE = {"log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints", "tensorboard"}


def training_settings(block: str, kind: type[TrainingBlock]) -> tuple[str, ...]:
    """The settings of a block of the YAML that change what it trains, as dotted names."""
    return tuple(f"{block}.{name}" for name in kind.model_fields if name not in NO_INFLUENCE)


def user_files(run: Run) -> Any:
    """Checksums of the files that the data block names."""
    return content_of(path for path in named_paths(run.config.data.model_dump()) if path.exists())


def model_files(run: Run) -> Any:
    """What a local model folder holds now; nothing for a name or a hub id."""
    return folder_state(Path(run.config.model.path).expanduser())


def template_texts(names: Iterable[str]) -> list[str | None]:
    """The texts of prompt templates: an edited one makes new questions."""
    paths = [template_path(name) for name in names]
    return [path.read_text() if path.is_file() else None for path in paths]
