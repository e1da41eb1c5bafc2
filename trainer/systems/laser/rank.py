"""Stage rank: users at test as vectors, and where their next item stands in the whole catalogue.

Shapes: N users, I items, H width of the LLM, K places of a list.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from recloom.data_shards.artifacts import atomic_write_bytes, read_manifest
from recloom.data_shards.shards import ShardReader
from recloom.kernels.full_rank import Ranking, full_rank
from recloom.trainer.models import quiet_transformers, resolve_model
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser.bituning import BiTuning
from recloom.trainer.systems.laser.embedding import embed, read_vectors
from recloom.trainer.systems.laser.epochs import ITEMS
from recloom.trainer.systems.laser.methods import Method, asked_methods, stage_numbers
from recloom.trainer.systems.laser.network import load_weights, make_network, read_weights
from recloom.trainer.systems.laser.objective import RowReader
from recloom.trainer.systems.laser.parameters import empty_llm
from recloom.trainer.systems.laser.settings import LaserConfig
from recloom.trainer.systems.laser.states import States, method_states
from recloom.trainer.systems.laser.task import Task, load_task
from recloom.trainer.systems.laser.texts import make_renderer
from recloom.trainer.systems.laser.training import model_folder

SHOWN = 10  # items of each user's list that are kept


def run_rank(run: Run[LaserConfig]) -> None:
    """Every method, with Hugging Face in this process."""
    task = load_task(run)
    for method in asked_methods(run.config):
        states, folder = method_states(run, method), rank_folder(run, method)
        network, reader = load_network(run, method, states), test_reader(run, states)
        embed(network, reader, run.config.embed, folder, method.name)
        keep_ranking(run, task, method)


def rank_folder(run: Run[LaserConfig], method: Method) -> Path:
    return run.path(f"rank/{method.key}")


def ranking_path(run: Run[LaserConfig], method: Method) -> Path:
    return run.path(f"rank/{method.key}.parquet")


def final_folder(run: Run[LaserConfig], method: Method) -> Path:
    """The model that answers for a method."""
    return model_folder(run, method, stage_numbers(run.config, method)[-1])


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_reader(run: Run[LaserConfig], states: States | None) -> RowReader:
    texts = run.path("texts/test")
    read_manifest(texts, verify=True)
    return RowReader(ShardReader(texts), states, device())


def load_network(run: Run[LaserConfig], method: Method, states: States | None) -> BiTuning:
    """The trained network around the LLM, in the training's number format, for evaluation."""
    from transformers import AutoModelForCausalLM

    model = run.config.model
    with quiet_transformers():
        llm: Any = AutoModelForCausalLM.from_pretrained(
            resolve_model(model.path, run.cache),
            dtype=getattr(torch, model.dtype),
            attn_implementation=model.attention,
        )
    return trained_around(run, method, states, llm).to(device())


def load_parts(run: Run[LaserConfig], method: Method, states: States | None) -> BiTuning:
    """What was trained, alone: the LLM inside has shapes but no weights."""
    return trained_around(run, method, states, empty_llm(resolve_model(run.config.model.path, run.cache)))


def trained_around(run: Run[LaserConfig], method: Method, states: States | None, llm: Any) -> BiTuning:
    """All that is trained is loaded, so where it started from does not matter."""
    config, folder, renderer = run.config, final_folder(run, method), make_renderer(run)
    network = make_network(
        llm.base_model,
        method,
        config.bitune,
        0 if states is None else states.width,
        1.0,
        torch.zeros(llm.get_input_embeddings().embedding_dim),
        renderer.eos_id,
        len(renderer.prefix_ids),
    )
    load_weights(network, read_weights(folder), folder)
    return network.to(getattr(torch, config.model.dtype)).eval()


def keep_ranking(run: Run[LaserConfig], task: Task, method: Method) -> None:
    """One row a user: the target's rank from 1, and the best items with their cosines."""
    users_NH = read_vectors(rank_folder(run, method))
    items_IH = read_vectors(final_folder(run, method) / ITEMS)
    found = ranked(task, users_NH, items_IH, run.config.rank.mask_seen)
    assert found.target_ranks_N is not None
    table = pa.table(
        {
            "user": [example.user for example in task.test],
            "target": [example.target for example in task.test],
            "rank": found.target_ranks_N.numpy() + 1,
            "items": found.top_items_NK.tolist(),
            "cosines": found.top_scores_NK.tolist(),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    atomic_write_bytes(ranking_path(run, method), buffer.getvalue())


def ranked(task: Task, users_NH: Tensor, items_IH: Tensor, mask_seen: bool) -> Ranking:
    """Cosine over the whole catalogue (eq. 3-4); ties stand against the target."""
    seen = seen_items(task) if mask_seen else None
    targets_N = torch.tensor([example.target for example in task.test])
    k = min(SHOWN, len(items_IH))
    return full_rank(users_NH, items_IH, k, seen=seen, targets_N=targets_N, cosine=True)


def seen_items(task: Task) -> tuple[Tensor, Tensor]:
    """What the users at test already have, without the target where it is bought again."""
    kept = [example.history[example.history != example.target].astype(np.int64) for example in task.test]
    offsets_N1 = np.cumsum([0, *map(len, kept)])
    return torch.from_numpy(offsets_N1), torch.from_numpy(np.concatenate(kept))
