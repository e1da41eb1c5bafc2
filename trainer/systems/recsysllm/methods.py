"""What is compared: RecSysLLM, and one thing at a time left out of it at equal compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recloom.data_shards.spans import MaskSettings
from recloom.trainer.systems.recsysllm.settings import FamilyName, MethodName, RecSysLLMConfig


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        name: as tables print it.
        mask: settings of the masks that differ.
        families: what it is trained on and asked; None for all.
    """

    key: MethodName
    name: str
    mask: Mapping[str, Any] = field(default_factory=dict)
    families: tuple[FamilyName, ...] | None = None

    def settings(self, config: RecSysLLMConfig) -> MaskSettings:
        return config.mask.model_copy(update=dict(self.mask))

    def of(self, families: tuple[FamilyName, ...]) -> tuple[FamilyName, ...]:
        """Those of the config's families that concern it."""
        return tuple(name for name in families if self.families is None or name in self.families)


METHODS: dict[MethodName, Method] = {
    method.key: method
    for method in (
        Method("recsysllm", "RecSysLLM"),
        Method("token_masks", "token masking", {"units": "token"}),
        Method("permuted", "permuted spans", {"order": "permuted"}),
        Method("one_d", "1D positions", {"positions": "1d"}),
        Method("sequential_only", "sequential task only", families=("sequential",)),
    )
}


def asked_methods(config: RecSysLLMConfig) -> list[Method]:
    return [METHODS[name] for name in config.methods]
