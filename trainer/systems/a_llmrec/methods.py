"""What is compared: the rows of the paper's Table 1 that ask a language model, and the SBERT variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig, MethodName

Vectors = Literal["joint", "text", "backbone"]


@dataclass(frozen=True)
class Method:
    """One way to ask.

    Attributes:
        key: names files. name: as tables print it.
        trained: the stage-2 model that answers; None is the LLM as it is.
        vectors: what the items' soft tokens are made of: joint embeddings (q for items without interactions),
            q of all items, or the backbone's vectors; None asks with text alone.
    """

    key: str
    name: str
    trained: MethodName | None
    vectors: Vectors | None


SBERT = Method("a_llmrec_sbert", "A-LLMRec (SBERT)", "a_llmrec", "text")
METHODS: dict[MethodName, tuple[Method, ...]] = {
    "llm_only": (Method("llm_only", "LLM-only", None, None),),
    "tallrec": (Method("tallrec", "TALLRec", "tallrec", None),),
    "mlp_llm": (Method("mlp_llm", "MLP-LLM", "mlp_llm", "backbone"),),
    "a_llmrec": (Method("a_llmrec", "A-LLMRec", "a_llmrec", "joint"), SBERT),
}


def asked_methods(config: ALLMRecConfig) -> list[Method]:
    """Every method of the config; the SBERT variant costs no training of its own.

    On another data set's items no item has interactions: there A-LLMRec is its SBERT variant.
    """
    found = [method for name in config.methods for method in METHODS[name]]
    if config.scenario.trained is None:
        return found
    return [method for method in found if method.vectors in (None, "text")]


def projected(config: ALLMRecConfig) -> list[MethodName]:
    """The methods that train F_U and F_I."""
    return [name for name in config.methods if name in ("mlp_llm", "a_llmrec")]
