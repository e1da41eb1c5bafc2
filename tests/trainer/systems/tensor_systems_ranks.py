"""Run by test_tensor_systems.py on every rank: what each system trains, divided, against plain torch.

usage: tensor_systems_ranks.py TENSOR NETWORK:ZERO_STAGE...

Each rank also trains on all rows in plain torch and compares losses, weights and the gathered state.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from blank_networks import WORDS, random_masked, row_of, small_llm, small_network
from random_llm import random_llm

from recloom.data_shards.stream import IGNORE
from recloom.trainer.config import ModelBlock, ParallelBlock, TrainingBlock
from recloom.trainer.engine import Engine, deepspeed_json, start_ranks
from recloom.trainer.packed_attention import PACKED
from recloom.trainer.systems.a_llmrec.project import adapted
from recloom.trainer.systems.a_llmrec.projection import ProjectedLM, Projection, Widths
from recloom.trainer.systems.a_llmrec.settings import LoraBlock
from recloom.trainer.systems.laser.bituning import BiTuning
from recloom.trainer.systems.laser.mformer import MFormer, MFormerSettings
from recloom.trainer.systems.recsysllm.saved import adapt
from recloom.trainer.systems.recsysllm.settings import LoraBlock as BlankLoraBlock
from recloom.trainer.vocabulary_loss import VocabularyShard, summed_cross_entropy

STEPS, ROWS, RATE, TOLERANCE = 3, 2, 1e-2, 1e-5
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A network, one row's inputs by a generator, and a row's loss."""

    make: Callable[[], Any]
    row: Callable[[int], Inputs]
    loss: Callable[[Any, Inputs, VocabularyShard | None], Tensor]


def users_row(seed: int) -> Inputs:
    """Two users with histories."""
    drawn = torch.Generator().manual_seed(seed)
    return {
        "ids": torch.randint(3, 50, (9,), generator=drawn),
        "boundaries": [0, 5, 9],
        "C_SND": torch.randn(2, 3, 5, generator=drawn),
        "real_SN": torch.tensor([[True, True, True], [True, False, False]]),
    }


def make_laser() -> BiTuning:
    llm = random_llm(PACKED)
    torch.manual_seed(1)
    settings = MFormerSettings(experts=3, tokens=2, blocks=2, hidden=8, heads=2, dropout=0)
    return BiTuning(llm, MFormer(settings, 5, 16), "suffix", llm.embed_tokens.weight.mean(0))


def laser_loss(model: Any, row: Inputs, _: VocabularyShard | None) -> Tensor:
    states_SH = model(**row).states_SH.float()
    drawn = torch.randn(states_SH.shape, generator=torch.Generator().manual_seed(9))
    return (states_SH - drawn).square().sum()


def blank_row(seed: int) -> Inputs:
    """More targets than are scored at once are in test_recsysllm_objective.py."""
    row = row_of([random_masked(np.random.default_rng([seed, text])) for text in range(2)])
    keep_A = torch.nonzero(row.labels_T != IGNORE)[:, 0]
    return {
        "input_ids": row.ids_T[None],
        "intra_ids": row.intra_T[None],
        "position_ids": row.position_ids_T[None],
        "logits_to_keep": keep_A,
        "boundaries": row.boundaries.tolist(),
        "num_a": row.num_a_S.tolist(),
        "targets_A": row.labels_T[keep_A],
    }


def make_blanks_lora() -> Any:
    network = small_network()
    network.llm.requires_grad_(False)
    torch.manual_seed(2)
    adapt(network.llm, BlankLoraBlock(r=3, lora_alpha=6))
    return grown(network)


def grown(network: Any) -> Any:
    """With updates that are not zero at first, as they would be."""
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def text_row(seed: int) -> Inputs:
    drawn = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(3, WORDS, (1, 9), generator=drawn),
        "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]]),
        "boundaries": [0, 5, 9],
        "logits_to_keep": torch.tensor([2, 3, 7]),
        "use_cache": False,
    }


def text_loss(model: Any, row: Inputs, vocabulary: VocabularyShard | None) -> Tensor:
    target_A = row["input_ids"][0, row["logits_to_keep"] + 1]
    return summed_cross_entropy(model(**row).logits[0], target_A, vocabulary)


def make_lora() -> Any:
    llm = small_llm(PACKED).requires_grad_(False)
    torch.manual_seed(2)
    modules = ("q_proj", "v_proj", "o_proj", "down_proj")
    return grown(adapted(llm, LoraBlock(r=3, lora_dropout=0.0, modules=modules)))


def make_projected() -> ProjectedLM:
    llm = small_llm(PACKED)
    torch.manual_seed(3)
    users_ND, items_IE = torch.randn(4, 5), torch.randn(6, 7)
    return ProjectedLM(llm, Projection(Widths(5, 7, 12, 16)), users_ND, items_IE)


def soft_row(seed: int) -> Inputs:
    """A user at the first place, items at two others."""
    soft_BT = torch.full((1, 9), -1)
    soft_BT[0, torch.tensor([0, 5])] = 0
    soft_BT[0, torch.tensor([1, 6])] = torch.tensor([1, 2])
    users_U, items_J = torch.tensor([seed % 4]), torch.tensor([0, 3])
    return {**text_row(seed), "soft_BT": soft_BT, "user_rows_U": users_U, "items_J": items_J}


JOBS = {
    "laser": Job(make_laser, users_row, laser_loss),
    "blanks": Job(small_network, blank_row, lambda model, row, _: model(**row)),
    "blanks_lora": Job(make_blanks_lora, blank_row, lambda model, row, _: model(**row)),
    "lora": Job(make_lora, text_row, text_loss),
    "projected": Job(make_projected, soft_row, text_loss),
}


def plain_training(job: Job, network: Any) -> list[float]:
    trained = [p for p in network.parameters() if p.requires_grad]
    adam, losses = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0), []
    for step in range(STEPS):
        adam.zero_grad()
        loss = torch.stack([job.loss(network, job.row(10 * step + n), None) for n in range(ROWS)]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        losses.append(loss.item())
    return losses


def check(name: str, stage: int, tensor: int, world_size: int) -> None:
    job, label = JOBS[name], f"{name}, ZeRO-{stage}"
    network = job.make().train()
    plain = copy.deepcopy(network)
    expected = plain_training(job, plain)
    training = TrainingBlock(learning_rate=RATE, rows_per_step=ROWS, gradient_clipping=1.0)
    parallel = ParallelBlock(zero_stage=cast(Any, stage), tensor=tensor)
    ds_config = deepspeed_json(ModelBlock(path="x", dtype="float32"), training, parallel, world_size)
    engine = Engine(network, ds_config)
    place, ranks = engine.layout.data_rank, engine.layout.data_size
    for step in range(STEPS):
        total = torch.zeros(())
        for number in range(place, ROWS, ranks):
            loss = job.loss(engine, job.row(10 * step + number), engine.vocabulary)
            total += loss.detach() / ROWS
            engine.backward(loss)
            engine.step(RATE)
        dist.all_reduce(total)
        found = total.item() / tensor
        assert abs(found - expected[step]) < TOLERANCE * max(1, expected[step]), (
            label,
            step,
            found,
            expected,
        )
    assert abs(expected[-1] - expected[0]) > 100 * TOLERANCE, "a model that hardly learns shows nothing"
    state = engine.trained_state()
    if engine.layout.rank == 0:
        check_state(state, plain, label)
    engine.close()


def check_state(state: dict[str, Tensor], plain: Any, label: str) -> None:
    """Gathered under their names, and nothing else."""
    wanted = {name: p for name, p in plain.named_parameters(remove_duplicate=False) if p.requires_grad}
    assert state.keys() == wanted.keys(), label
    for name, weight in state.items():
        off = (weight - wanted[name].detach()).abs()
        # The bias of keys changes no attention: AdamW makes steps of the rounding of its gradient, zero.
        bound = STEPS * RATE if name.endswith(("key.bias", "k_proj.bias")) else TOLERANCE
        assert off.median() < bound and off.max() < STEPS * RATE, f"{label}: {name} is off by {off.max()}"


def main() -> None:
    tensor, cases = int(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    _, world_size = start_ranks(ParallelBlock(tensor=tensor))
    for case in cases:
        name, stage = case.split(":")
        check(name, int(stage), tensor, world_size)
    sys.stdout.flush()
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
