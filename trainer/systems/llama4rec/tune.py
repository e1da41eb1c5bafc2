"""The tuning stages: full-parameter instruction tuning under ZeRO (section 4.5.2)."""

from __future__ import annotations

from pathlib import Path

from recloom.data_shards.artifacts import MANIFEST
from recloom.data_shards.errors import UserError
from recloom.trainer.models import resolve_model
from recloom.trainer.stages import Run
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig


def tuned_models(config: Llama4RecConfig) -> list[str]:
    """The models a config tunes: Llama4Rec's, and the IFT baseline's unless they are shared."""
    return ["llama4rec"] if config.training.ift == "shared" else ["ift", "llama4rec"]


def stage_name(model: str) -> str:
    return "tune" if model == "llama4rec" else f"tune_{model}"


def model_of(config: Llama4RecConfig, method: str) -> str:
    """The tuned model that answers for a method."""
    return method if method in tuned_models(config) else "llama4rec"


def model_folder(run: Run[Llama4RecConfig], model: str) -> Path:
    """The tuned Hugging Face folder: of this run, or of the run that `model.tuned` names."""
    folder = Path(run.config.model.tuned).expanduser() if run.config.model.tuned else run.folder
    path = folder / "tune" / model / "model"
    if run.config.model.tuned and not (path / MANIFEST).is_file():
        raise UserError(
            f"model.tuned = '{folder}': there is no finished {path.relative_to(folder)}: "
            "finish that run, with the same training.ift, or name another."
        )
    return path


def run_tune(run: Run[Llama4RecConfig], model: str) -> None:
    """Called on every rank."""
    from recloom.trainer.shard_training import tune

    config = run.config
    base = resolve_model(config.model.path, run.cache)
    corpus, out = run.path(f"instructions/{model}"), run.path(f"tune/{model}")
    tune(config, config.training, stage_name(model), base, corpus, out)
