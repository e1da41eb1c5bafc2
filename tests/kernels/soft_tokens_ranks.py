"""Run by test_soft_tokens.py on every rank: soft tokens over partitioned and sharded tables.

2 ranks: ZeRO-3, and vocabulary-parallel embeddings. 4 ranks: ZeRO-3 with tensor parallel 2. Each
rank also runs the whole batch in plain torch and compares.
"""

from __future__ import annotations

import copy
import os
import sys
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from recloom.kernels.soft_layout import mark, surround_padded
from recloom.kernels.soft_tokens import soft_tokens
from recloom.trainer.config import ParallelBlock
from recloom.trainer.engine import start_ranks

VOCABULARY, HIDDEN, VECTOR, ROWS = 96, 32, 6, 9
PREFIX, PLACEHOLDER = (7, 8), 5
STEPS, RATE, TOLERANCE = 3, 0.5, 1e-5


class Prompted(nn.Module):
    """A language model with two virtual tokens before each prompt and vectors inside it."""

    def __init__(self) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.1,
            attn_implementation="eager",
            pad_token_id=0,
        )
        self.llama = LlamaForCausalLM(config)
        self.rows = nn.Parameter(torch.randn(ROWS, VECTOR))
        self.mix = nn.Parameter(torch.randn(VECTOR, HIDDEN) * 0.1)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the last three tokens."""
        labels = ids.clone()
        labels[:, :-3] = -100
        longer = surround_padded(mark(ids, slots), mask, torch.tensor(PREFIX), None, labels)
        table = self.llama.get_input_embeddings()
        embeddings = soft_tokens(longer.source_BU, table, self.rows, lambda rows: rows @ self.mix)
        output = self.llama(
            inputs_embeds=embeddings, attention_mask=longer.mask_BU, position_ids=longer.positions_BU
        )
        assert longer.labels_BU is not None
        return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), longer.labels_BU[:, 1:].flatten())


def make_batch(num_rows: int) -> list[torch.Tensor]:
    """Left-padded ids, mask and slots; one vector stands in two rows."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(6, VOCABULARY, (num_rows, 11), generator=generator)
    mask, slots = torch.ones_like(ids), torch.full_like(ids, -1)
    for row in range(num_rows):
        mask[row, : row % 4] = 0
        slots[row, 4], slots[row, 6] = row % 3, 3 + row
    ids = ids.masked_fill(slots >= 0, PLACEHOLDER).masked_fill(mask == 0, 0)
    return [ids, mask, slots]


def plain_training(model: Prompted, batch: list[torch.Tensor]) -> list[float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def settings(tensor_parallel: int, rows: int) -> dict[str, Any]:
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if tensor_parallel > 1:
        config["tensor_parallel"] = {"autotp_size": tensor_parallel}
    return config


def check_zero3(rank: int, world_size: int, tensor_parallel: int, frozen: bool) -> None:
    """Losses and soft rows of three steps equal the plain loop's."""
    torch.manual_seed(0)
    model = Prompted()
    model.llama.requires_grad_(not frozen)
    plain = copy.deepcopy(model)
    start = model.rows.detach().clone()
    data_ranks = world_size // tensor_parallel
    batch = make_batch(2 * data_ranks)
    expected = plain_training(plain, batch)
    mine = rank // tensor_parallel
    part = [values[2 * mine : 2 * mine + 2] for values in batch]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(trained, lr=RATE), config=settings(tensor_parallel, 2)
    )
    for step in range(STEPS):
        loss = engine(*part)
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        mean /= world_size
        assert abs(mean.item() - expected[step]) < TOLERANCE, (frozen, step, mean.item(), expected[step])
    parameters = [engine.module.rows, engine.module.mix]
    with deepspeed.zero.GatheredParameters(parameters):
        moved, should = parameters[0].detach() - start, plain.rows.detach() - start
        assert should.abs().amax(1).min() > 100 * TOLERANCE, "a row that hardly moves shows nothing"
        torch.testing.assert_close(moved, should, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(parameters[1].detach(), plain.mix.detach(), atol=TOLERANCE, rtol=0)
    engine.destroy()


class Reduce(torch.autograd.Function):
    """Sum over ranks; each rank's loss is the whole loss, so the gradient stays as it is."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


class VocabularyParallel(nn.Module):
    """Each rank holds V / ranks rows of the table (Megatron-LM section 3)."""

    def __init__(self, table_VH: torch.Tensor, rank: int, world_size: int) -> None:
        super().__init__()
        self.num_embeddings = len(table_VH)
        self.weight = nn.Parameter(table_VH.chunk(world_size)[rank].clone())
        self.first = rank * len(self.weight)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        local = ids - self.first
        elsewhere = (local < 0) | (local >= len(self.weight))
        found = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return Reduce.apply(found.masked_fill(elsewhere.unsqueeze(-1), 0.0))


def check_vocabulary_parallel(rank: int, world_size: int, engines_own: bool) -> None:
    """Embeddings and gradients of rows and shard equal those over the whole table."""
    torch.manual_seed(1)
    table_VH, rows_NH = torch.randn(VOCABULARY, HIDDEN), torch.randn(ROWS, HIDDEN)
    ids, _, slots = make_batch(4)
    source_BT = mark(ids, slots)
    grad_BTH = torch.randn(*source_BT.shape, HIDDEN)
    whole, rows = table_VH.clone().requires_grad_(), rows_NH.clone().requires_grad_()
    expected = soft_tokens(source_BT, whole, rows)
    expected.backward(grad_BTH)
    embedding: nn.Module = VocabularyParallel(table_VH, rank, world_size)
    if engines_own:
        from deepspeed.module_inject.layers import VocabParallelEmbedding, set_autotp_mode

        set_autotp_mode(training=True)
        given = nn.Embedding(VOCABULARY, HIDDEN, _weight=table_VH.clone())
        embedding = VocabParallelEmbedding(given, mp_group=dist.group.WORLD).train()
    assert len(embedding.weight) == VOCABULARY // world_size  # type: ignore[arg-type]
    again = rows_NH.clone().requires_grad_()
    out = soft_tokens(source_BT, embedding, again)
    out.backward(grad_BTH)
    assert torch.equal(out, expected)
    torch.testing.assert_close(again.grad, rows.grad)
    assert whole.grad is not None
    torch.testing.assert_close(embedding.weight.grad, whole.grad.chunk(world_size)[rank])


def main() -> None:
    torch.set_num_threads(1)
    rank, world_size = start_ranks(ParallelBlock(zero_stage=3))
    if world_size == 2:
        for frozen in (False, True):
            check_zero3(rank, world_size, 1, frozen)
        for engines_own in (False, True):
            check_vocabulary_parallel(rank, world_size, engines_own)
    else:
        check_zero3(rank, world_size, 2, False)
    sys.stdout.flush()
    dist.barrier()
    os._exit(0)


main()
