"""What is compared: the rows of the paper's tables, and what each asks of the LLM.

Base is the backbone alone, Base+DA the one fitted on augmented data; neither asks anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from recloom.trainer.systems.llama4rec.backbones import Kind
from recloom.trainer.systems.llama4rec.settings import Llama4RecConfig

Part = Literal["valid", "test"]
Prompts = Literal["plain", "augmented"]


@dataclass(frozen=True)
class Asking:
    """One way to ask: whose candidates are ranked, and whether that backbone speaks in the prompts."""

    backbone: Kind
    prompts: Prompts

    @property
    def model(self) -> str:
        """The tuned model that answers; see tune.model_of."""
        return "llama4rec" if self.prompts == "augmented" else "ift"


@dataclass(frozen=True)
class Method:
    """A row of a table.

    weight: the LLM's answer alone, or mixed with the backbone's: adaptively (eq. 7) or with one
    weight for all users (Table 5, w/o AA).
    """

    name: str
    asking: Asking
    weight: Literal["alone", "adaptive", "uniform"]


IFT = Method("IFT", Asking("base", "plain"), "alone")
LLAMA4REC = Method("Llama4Rec", Asking("augmented", "augmented"), "adaptive")
ABLATION = (
    Method("w/o DA", Asking("base", "augmented"), "adaptive"),
    Method("w/o PA", Asking("augmented", "plain"), "adaptive"),
    Method("w/o AA", Asking("augmented", "augmented"), "uniform"),
)


def methods(config: Llama4RecConfig) -> tuple[Method, ...]:
    """The compared methods in the order of the paper's Table 5, Llama4Rec last."""
    return (IFT, *(ABLATION if config.evaluate.ablation else ()), LLAMA4REC)


def askings(config: Llama4RecConfig) -> dict[Asking, tuple[Part, ...]]:
    """What is asked at which parts: validation only where something is chosen there."""
    found: dict[Asking, tuple[Part, ...]] = {}
    for method in methods(config):
        chooses = method.weight != "alone" or config.rank.ranking == "best"
        parts: tuple[Part, ...] = ("valid", "test") if chooses else ("test",)
        if len(parts) > len(found.get(method.asking, ())):
            found[method.asking] = parts
    return found


def distinct(pairs: Iterable[tuple[Asking, Part]], task: str) -> list[tuple[Asking, Part]]:
    """The questions of a task without repeats: a plain rating prompt is the same for every backbone."""
    return list(dict.fromkeys((asked_as(asking, task), part) for asking, part in pairs))


def asked_as(asking: Asking, task: str) -> Asking:
    """A plain rating prompt names no backbone, so one asking serves them all."""
    return Asking("base", "plain") if task == "rating" and asking.prompts == "plain" else asking
