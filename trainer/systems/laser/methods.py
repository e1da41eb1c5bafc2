"""What is compared: Laser, and the rows of its ablations (Tables 4 and 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recloom.trainer.systems.laser.settings import LaserConfig, MethodName, Pooling

Prefix = Literal["mformer", "free", "none"]


@dataclass(frozen=True)
class Method:
    """One way to turn texts into vectors.

    Attributes:
        name: as tables print it.
        prefix: of the M-Former; trained freely and shared by all texts; or none.
        moe: whether the M-Former has more than one expert.
        stages: the training stages it goes through.
        trained_as: whose training it shares.
    """

    key: MethodName
    name: str
    prefix: Prefix = "mformer"
    moe: bool = True
    pooling: Pooling = "suffix"
    stages: tuple[int, ...] = (1, 2)
    trained_as: MethodName | None = None


METHODS: dict[MethodName, Method] = {
    method.key: method
    for method in (
        Method("laser", "Laser"),
        Method("no_moe", "w/o MoE", moe=False),
        Method("no_mformer", "w/o M-Former", prefix="free"),
        Method("no_prefix", "w/o prefix", prefix="none"),
        Method("no_stage_1", "w/o stage 1", stages=(2,)),
        Method("no_stage_2", "w/o stage 2", stages=(1,), trained_as="laser"),
        Method("average", "average pooling", pooling="mean"),
        Method("hard_eos", "hard [EOS]", pooling="eos"),
    )
}


def asked_methods(config: LaserConfig) -> list[Method]:
    return [METHODS[name] for name in config.methods]


def trained_methods(config: LaserConfig) -> list[Method]:
    """Those that have a training of their own."""
    return [method for method in asked_methods(config) if method.trained_as is None]


def stage_numbers(config: LaserConfig, method: Method) -> tuple[int, ...]:
    """The stages that are run for a method; stage 1 in any case, which without epochs starts the model."""
    second = 2 in method.stages and config.stage_2.epochs > 0
    return (1, 2) if second else (1,)
