"""Training on shards: the work of one training stage, on every rank."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from recloom.data_shards.artifacts import read_manifest, write_manifest
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import fingerprint
from recloom.data_shards.shards import ShardReader
from recloom.data_shards.stream import PackedStream, RowMaker, TokenSource
from recloom.trainer.agreement import first_decides
from recloom.trainer.callbacks.callback import Callback
from recloom.trainer.callbacks.checkpoint import Checkpoint
from recloom.trainer.callbacks.console import Console
from recloom.trainer.callbacks.evaluation import Evaluation
from recloom.trainer.callbacks.metrics_log import MetricsLog
from recloom.trainer.callbacks.preemption import Preemption
from recloom.trainer.config import RunConfig, TrainingBlock
from recloom.trainer.engine import Engine, deepspeed_json, load_partitioned
from recloom.trainer.loop import Loop
from recloom.trainer.loss import AnswerLoss, Objective
from recloom.trainer.models import load_tokenizer
from recloom.trainer.parallel_layout import RankLayout

DeepSpeedSettings: TypeAlias = dict[str, Any]


def tune(
    config: RunConfig, training: TrainingBlock, label: str, model_path: str, corpus: Path, out: Path
) -> None:
    """Tune all parameters on `corpus/train` and export a Hugging Face folder to `out/model`."""

    def build(ds_config: DeepSpeedSettings) -> Any:
        return load_partitioned(model_path, ds_config, config.model, training.gradient_checkpointing)

    def export(engine: Engine, folder: Path) -> None:
        engine.export(folder, load_tokenizer(model_path))

    tokenizer = fingerprint(load_tokenizer(model_path))
    train(config, training, label, tokenizer, corpus, out, build, export)


@dataclass(frozen=True)
class Lesson:
    """What is trained on and what is minimised; left out is what instruction tuning does.

    valid: samples of the validation loss, none for None. make_row, make_valid_row: see `PackedStream`.
    objective: made when the engine is there.
    """

    train: TokenSource
    valid: TokenSource | None = None
    make_row: RowMaker | None = None
    make_valid_row: RowMaker | None = None
    objective: Callable[[Engine], Objective] | None = None


def train(
    config: RunConfig,
    training: TrainingBlock,
    label: str,
    tokenizer: str,
    corpus: Path,
    out: Path,
    build: Callable[[DeepSpeedSettings], Any],
    export: Callable[[Engine, Path], None],
) -> None:
    """Train what `build` makes on `corpus/train`, and let `export` write it to `out/model`.

    Called by every rank of a started process group. Continues from `out/checkpoints` when an
    earlier run was cut off. `out/model/manifest.json` is written last and marks the end.

    Args:
        tokenizer: the fingerprint that the shards must have.
        build: makes the network from DeepSpeed's settings; what requires a gradient is trained.
        export: called by all ranks, rank 0 writes into the given folder.
    """
    set_threads()
    check_shards(corpus)
    source = open_shards(corpus / "train", tokenizer, training.context, "lower prompts.history_items")
    has_valid = (corpus / "valid" / "manifest.json").is_file()
    lesson = Lesson(source, ShardReader(corpus / "valid") if has_valid else None)
    train_lesson(config, training, label, lesson, out, build, export)


def train_lesson(
    config: RunConfig,
    training: TrainingBlock,
    label: str,
    lesson: Lesson,
    out: Path,
    build: Callable[[DeepSpeedSettings], Any],
    export: Callable[[Engine, Path], None],
) -> None:
    """The same on samples that are open and checked already."""
    torch.manual_seed(config.seed)
    ds_config = deepspeed_json(config.model, training, config.parallel, dist.get_world_size())
    engine = Engine(build(ds_config), ds_config)
    stream = make_stream(training, config.seed, lesson.train, engine.layout, lesson.make_row)
    if lesson.objective:
        objective = lesson.objective(engine)
    else:
        objective = AnswerLoss(config.model.attention, engine.device, engine.vocabulary)
    hooks = callbacks(training, config.seed, label, lesson, out, engine.layout)
    loop = Loop(engine, stream, training, objective, hooks)
    state = engine.load(out / "checkpoints")
    if state is not None:
        loop.load_state(state)
    loop.run()
    finish(engine, out / "model", export, loop.step)
    engine.close()


def check_shards(corpus: Path) -> None:
    """Rank 0 reads every byte: a flipped one must not be trained on. Raises UserError on every rank."""

    def read_all() -> None:
        for part in sorted(path.parent for path in corpus.glob("*/manifest.json")):
            read_manifest(part, verify=True)

    first_decides(read_all)


def set_threads() -> None:
    """Share the machine's cores among its ranks: more threads than cores slow every rank down."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))


def open_shards(folder: Path, tokenizer: str, context: int, remedy: str) -> ShardReader:
    """A reader of complete shards. Raises UserError for another tokenizer's or for too long samples.

    remedy: how to make samples shorter, or the context longer.
    """
    reader = ShardReader(folder)
    if reader.manifest["tokenizer"] != tokenizer:
        raise UserError(
            f"{folder}: made with another tokenizer than model.path's: delete the folder, run again."
        )
    longest = int(reader.lengths_N.max())
    if longest > context:
        raise UserError(
            f"context = {context}: the longest sample of {folder} has {longest} tokens, raise it to "
            f"{longest} or {remedy}."
        )
    return reader


def make_stream(
    training: TrainingBlock,
    seed: int,
    source: TokenSource,
    layout: RankLayout,
    make_row: RowMaker | None = None,
    epoch_samples: int | None = None,
) -> PackedStream:
    """The rows of this rank; the ranks of a tensor-parallel group get the same."""
    return PackedStream(
        source,
        training.pack_length,
        training.rows_per_step,
        training.window,
        seed,
        layout.data_rank,
        layout.data_size,
        make_row,
        epoch_samples,
    )


def callbacks(
    training: TrainingBlock, seed: int, label: str, lesson: Lesson, out: Path, layout: RankLayout
) -> list[Callback]:
    """Log first, so that a validation row follows its step; checkpoint last, and only then leave."""
    log = MetricsLog(out, training.tensorboard)
    made: list[Callback] = [Console(label, training.log_every), log]
    if lesson.valid is not None:
        stream = make_stream(training, seed, lesson.valid, layout, lesson.make_valid_row)
        made.append(Evaluation(label, stream, training.evaluate_every, log))
    checkpoint = Checkpoint(out / "checkpoints", training.checkpoint_every, training.keep_checkpoints)
    return [*made, checkpoint, Preemption(checkpoint)]


def finish(
    engine: Engine, folder: Path, export: Callable[[Engine, Path], None], step: int, **fields: Any
) -> None:
    """Export into a temporary folder and rename, manifest (with `fields`) last; checkpoints have served."""
    temporary = folder.with_name(folder.name + ".tmp")
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
    dist.barrier()
    export(engine, temporary)
    dist.barrier()
    if dist.get_rank() == 0:
        os.replace(temporary, folder)
        write_manifest(folder, steps=step, **fields)
        shutil.rmtree(folder.parent / "checkpoints", ignore_errors=True)
    dist.barrier()
