"""The language model of each method, ready to score candidates in this process.

Shapes: N users asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recloom.data_shards.artifacts import read_manifest
from recloom.data_shards.errors import UserError
from recloom.trainer.decoder_layers import spare_last_layer
from recloom.trainer.models import quiet_transformers, resolve_model
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec.methods import Method
from recloom.trainer.systems.a_llmrec.prepare import Task, models_run
from recloom.trainer.systems.a_llmrec.project import out_folder
from recloom.trainer.systems.a_llmrec.projection import ProjectedLM, Projection, load_projection
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig
from recloom.trainer.systems.a_llmrec.vectors import soft_tables


def load_llm(run: Run[ALLMRecConfig], attention: str) -> Any:
    """The LLM as it is, in the training's number format, for evaluation, on the GPU where there is one.

    attention: a name that transformers knows; `tree` scores candidates only.
    """
    from transformers import AutoModelForCausalLM

    path = resolve_model(run.config.model.path, run.cache)
    with quiet_transformers():
        llm = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, run.config.model.dtype), attn_implementation=attention
        )
    spare_last_layer(llm)
    return llm.requires_grad_(False).eval().to("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def answerer(
    run: Run[ALLMRecConfig],
    task: Task,
    method: Method,
    llm: Any,
    users_N: np.ndarray,
    histories: Sequence[np.ndarray],
) -> Iterator[Any]:
    """A method's model around the LLM, which is as it was afterwards.

    Row n of its user vectors is the state behind histories[n] of users_N[n].
    """
    if method.trained is None:
        yield llm
    elif method.vectors is None:
        from peft import PeftModel

        folder = model_folder(run, method)
        read_manifest(folder, verify=True)
        adapted = PeftModel.from_pretrained(llm, folder).eval()
        yield adapted
        adapted.unload()
    else:
        tables = soft_tables(run, task, method.vectors, users_N, histories)
        projection = load_projection(model_folder(run, method))
        check_widths(projection, llm, method)
        projection.to(llm.device, llm.dtype)
        yield ProjectedLM(llm, projection, tables.users_ND, tables.items_IE).eval()


def model_folder(run: Run[ALLMRecConfig], method: Method) -> Path:
    assert method.trained is not None
    return out_folder(models_run(run), method.trained) / "model"


def check_widths(projection: Projection, llm: Any, method: Method) -> None:
    found, wanted = projection.widths.tokens, llm.get_input_embeddings().embedding_dim
    if found != wanted:
        raise UserError(
            f"{method.name}: it projects to width {found}, the LLM has {wanted}: name the LLM that it was "
            "trained with in model.path."
        )
