"""The peer of benchmarks/tuning.py, on every rank: Hugging Face's Trainer with DeepSpeed ZeRO-3.

As its documentation has it: batches padded to their longest sample, the loss from all logits. `packed`: the
samples of a batch laid end to end (`DataCollatorWithFlattening`), so that nothing is padded.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from deepspeed import ops
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from work import WARM_STEPS, Measured, PartClock, Work, gib, leave, mean_loss, samples_of

ZERO_3 = {
    "zero_optimization": {"stage": 3},
    "bf16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True},
    },
    "zero_allow_untested_optimizer": True,
}


class Clock(TrainerCallback):
    """When each optimizer step ended; the parts of the last."""

    def __init__(self, last: int, engine: Callable[[], Any]) -> None:
        self.ends, self.last, self.parts = [time.perf_counter()], last, PartClock()
        self.engine = engine  # DeepSpeed's, which is made after this

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends = [time.perf_counter()]

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if len(self.ends) == self.last:
            self.parts.watch(self.engine())
            self.parts.is_on = True

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


class Counted:
    """A collator that counts the tokens that are no padding, and all positions."""

    def __init__(self, collate: Any) -> None:
        self.collate, self.tokens, self.positions = collate, [0], [0]

    def __call__(self, samples: list[dict[str, list[int]]]) -> Any:
        self.tokens.append(sum(len(sample["input_ids"]) for sample in samples))
        batch = self.collate(samples)
        self.positions.append(batch["input_ids"].numel())
        return batch


def check(model: Any, samples: list[dict[str, list[int]]], count: int) -> list[float]:
    losses = []
    for sample in samples[:count]:
        ids = torch.tensor([sample["input_ids"]], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0]
        losses.append(mean_loss(logits, torch.tensor(sample["labels"])))
    return losses


def arguments(work: Work, world_size: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        deepspeed=ZERO_3,
        bf16=work.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=work.samples // world_size,
        max_steps=WARM_STEPS + work.steps,
        learning_rate=1e-5,
        use_liger_kernel=work.liger,
        dataloader_num_workers=0,  # a worker's counts would stay with the worker
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )


def main() -> None:
    work = Work.read()
    # It serves inference only, and leaves a lock when its compilation is cut off.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    world_size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world_size))
    settings = arguments(work, world_size)
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    # With the Trainer's settings there, the model is loaded in parts (zero.Init).
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=getattr(torch, work.dtype))
    samples = samples_of(work.corpus)
    collate = DataCollatorWithFlattening() if work.packed else DataCollatorForSeq2Seq(tokenizer, padding=True)
    counted = Counted(collate)
    clock = Clock(WARM_STEPS + work.steps, lambda: trainer.model_wrapped)
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=samples,
        data_collator=counted,
        callbacks=[clock, Losses(work, samples)],
    )
    trainer.train()
    losses = Losses.found
    steps = range(WARM_STEPS, WARM_STEPS + work.steps)
    seconds = [clock.ends[n + 1] - clock.ends[n] for n in steps]
    tokens, positions = (
        total_tokens([counts[n + 1] for n in steps]) for counts in (counted.tokens, counted.positions)
    )
    if rank == 0:
        parts = clock.parts.parts(clock.ends[-1] - clock.ends[-2])
        padding = 1 - sum(tokens) / sum(positions)
        Measured(seconds, tokens, padding, parts, losses, gib()).write(work)
    leave()


class Losses(TrainerCallback):
    """Each checked sample's loss, from the engine that is about to train."""

    found: list[float] = []

    def __init__(self, work: Work, samples: list[dict[str, list[int]]]) -> None:
        self.work, self.samples = work, samples

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        Losses.found[:] = check(model, self.samples, self.work.checked)


def total_tokens(mine: list[int]) -> list[int]:
    """The tokens of each step over all ranks."""
    counts = torch.tensor(mine)
    if torch.cuda.is_available():
        counts = counts.cuda()
    torch.distributed.all_reduce(counts)
    return counts.tolist()


main()
