"""What Laser's settings must hold together (see trainer/config_rules.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloom.data_shards.sources.registry import did_you_mean
from recloom.trainer.collaborative.registry import backbone_module, backbone_names
from recloom.trainer.config_rules import Rule

if TYPE_CHECKING:
    from recloom.trainer.systems.laser.settings import LaserConfig


def one_backbone(config: LaserConfig) -> str | None:
    tasks = config.backbones.tasks
    if tasks in (["direct"], ["sequential"]):
        return None
    return f"backbones: {', '.join(tasks) or 'none'} named, Laser stands on one, name direct or sequential"


def methods_differ(config: LaserConfig) -> str | None:
    if len(set(config.methods)) == len(config.methods):
        return None
    return f"methods = {list(config.methods)}: one is there twice, remove it"


def known_baselines(config: LaserConfig) -> str | None:
    names = [name for task in ("direct", "sequential") for name in backbone_names(task) if stands_alone(name)]
    wrong = [name for name in config.baselines if name not in names]
    if not wrong:
        return None
    return (
        f"baselines = {list(config.baselines)}: '{wrong[0]}' is no such recommender"
        f"{did_you_mean(wrong[0], names)}, choose from {', '.join(sorted(names))}"
    )


def stands_alone(name: str) -> bool:
    """Whether a recommender can be fitted at its defaults: `vectors` needs files."""
    fields = backbone_module(name).Settings.model_fields
    return not any(field.is_required() for key, field in fields.items() if key != "model")


def baselines_differ(config: LaserConfig) -> str | None:
    named = [*config.baselines, *(getattr(config.backbones, task).model for task in config.backbones.tasks)]
    if len(set(named)) == len(named):
        return None
    return f"baselines = {list(config.baselines)}: one is there twice or is the backbone, remove it"


def some_training(config: LaserConfig) -> str | None:
    epochs = {"no_stage_1": config.stage_2.epochs, "no_stage_2": config.stage_1.epochs}
    for name, left in epochs.items():
        if name in config.methods and left == 0:
            return f"methods: {name} leaves nothing to train, give the other stage an epoch or remove it"
    return None


def something_trains(config: LaserConfig) -> str | None:
    if config.stage_1.epochs or config.stage_2.epochs or config.bitune.start_from is not None:
        return None
    return (
        "stage_1.epochs = 0: nothing is trained with stage_2.epochs = 0, raise one of them, or name a "
        "finished run in bitune.start_from"
    )


def ablated_stage_is_there(config: LaserConfig) -> str | None:
    if "no_stage_2" not in config.methods or "laser" in config.methods:
        return None
    return "methods: no_stage_2 is laser as stage 1 leaves it, but methods does not name laser, add it"


def pooling_fits_engine(config: LaserConfig) -> str | None:
    if config.rank.engine == "hf" or "average" not in config.methods:
        return None
    return (
        "rank.engine = vllm: its pooling reads the last position and method average needs all, "
        "set rank.engine to hf or remove average"
    )


RULES = (
    Rule(("backbones",), one_backbone),
    Rule(("methods",), methods_differ),
    Rule(("baselines",), known_baselines),
    Rule(("baselines", "backbones"), baselines_differ),
    Rule(("methods", "stage_1", "stage_2"), some_training),
    Rule(("stage_1.epochs", "stage_2.epochs", "bitune.start_from"), something_trains),
    Rule(("methods",), ablated_stage_is_there),
    Rule(("methods", "rank.engine"), pooling_fits_engine),
)
