"""The tuning stages: full-parameter instruction tuning under ZeRO (section 4.5.2)."""

from __future__ import annotations

from recloom.trainer.config import RunConfig
from recloom.trainer.models import resolve_model
from recloom.trainer.stages import Run


def tuned_models(config: RunConfig) -> list[str]:
    """The models a config tunes: Llama4Rec's, and the IFT baseline's unless they are shared."""
    return ["llama4rec"] if config.training.ift == "shared" else ["ift", "llama4rec"]


def stage_name(model: str) -> str:
    return "tune" if model == "llama4rec" else f"tune_{model}"


def model_of(config: RunConfig, method: str) -> str:
    """The tuned model that answers for a method."""
    return method if method in tuned_models(config) else "llama4rec"


def run_tune(run: Run, model: str) -> None:
    """Called on every rank."""
    from recloom.trainer.instruction_tuning import tune

    base = resolve_model(run.config.model.path, run.cache)
    tune(run.config, stage_name(model), base, run.path(f"instructions/{model}"), run.path(f"tune/{model}"))
