"""The training loop in plain PyTorch: one process, one sample at a time, torch's AdamW and clipping."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fixed_samples import FixedSamples, training_block

from recloom.data_shards.stream import PackedStream
from recloom.trainer.loop import learning_rate


@dataclass(frozen=True)
class PlainTraining:
    """steps: loss and gradient norm of each. validation: mean loss of the samples behind the last."""

    steps: list[list[float]]
    validation: float
    model: Any


def plain_training(folder: Path, source: FixedSamples) -> PlainTraining:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    training = training_block()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    adam = torch.optim.AdamW(
        model.parameters(),
        lr=training.learning_rate,
        betas=training.betas,
        eps=training.eps,
        weight_decay=training.weight_decay,
    )
    stream = PackedStream(source, training.pack_length, training.rows_per_step, training.window, 3, 0, 1)
    total_steps = sum(stream.num_steps(epoch) for epoch in range(training.epochs))
    rows, step = [], 0
    for _ in range(training.epochs):
        for batch in stream:
            loss = mean_loss(model, source, batch.sample_ids)
            adam.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clipping)
            adam.param_groups[0]["lr"] = learning_rate(step, total_steps, training)
            adam.step()
            rows.append([loss.item(), norm.item()])
            step += 1
    with torch.no_grad():
        validation = mean_loss(model, source, list(range(len(source.lengths_N)))).item()
    return PlainTraining(rows, validation, model)


def mean_loss(model: torch.nn.Module, source: FixedSamples, indices: list[int]) -> torch.Tensor:
    """Over the answer tokens of some samples."""
    tokens = sum(int(source.lengths_N[index] - source.num_prompt_N[index]) for index in indices)
    return torch.stack([sample_loss(model, source, index) for index in indices]).sum() / tokens


def sample_loss(model: torch.nn.Module, source: FixedSamples, index: int) -> torch.Tensor:
    ids = torch.from_numpy(source.ids(index)).long()
    labels = ids.clone()
    labels[: source.num_prompt_N[index]] = -100
    logits = model(input_ids=ids[None]).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum")
