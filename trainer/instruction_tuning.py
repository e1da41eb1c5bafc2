"""Full-parameter instruction tuning on shards: the work of one training stage, on every rank."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist

from recloom.data_shards.artifacts import read_manifest, write_manifest
from recloom.data_shards.errors import UserError
from recloom.data_shards.renderer import fingerprint
from recloom.data_shards.shards import ShardReader
from recloom.data_shards.stream import PackedStream
from recloom.trainer.callbacks.callback import Callback
from recloom.trainer.callbacks.checkpoint import Checkpoint
from recloom.trainer.callbacks.console import Console
from recloom.trainer.callbacks.evaluation import Evaluation
from recloom.trainer.callbacks.metrics_log import MetricsLog
from recloom.trainer.config import RunConfig
from recloom.trainer.engine import Engine, deepspeed_json
from recloom.trainer.loop import Loop
from recloom.trainer.models import load_tokenizer


def tune(config: RunConfig, label: str, model_path: str, corpus: Path, out: Path) -> None:
    """Tune all parameters on `corpus/train` and export a Hugging Face folder to `out/model`.

    Called by every rank of a started process group. Continues from `out/checkpoints` when an
    earlier run was cut off. `out/model/manifest.json` is written last and marks the end.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    set_threads()
    torch.manual_seed(config.seed)
    tokenizer = load_tokenizer(model_path)
    check_shards(corpus)
    source = open_shards(corpus / "train", fingerprint(tokenizer), config.training.context)
    engine = Engine(
        model_path,
        deepspeed_json(config.model, config.training, config.parallel, world_size),
        config.model,
        config.training.gradient_checkpointing,
    )
    stream = make_stream(config, source, rank, world_size)
    loop = Loop(
        engine, stream, config.training, config.model.attention, callbacks(config, label, corpus, out)
    )
    state = engine.load(out / "checkpoints")
    if state is not None:
        loop.load_state(state)
    loop.run()
    export(engine, out / "model", tokenizer, loop.step)
    engine.close()


def check_shards(corpus: Path) -> None:
    """Rank 0 reads every byte: a flipped one must not be trained on. Raises UserError with its file."""
    if dist.get_rank() == 0:
        for part in sorted(path.parent for path in corpus.glob("*/manifest.json")):
            read_manifest(part, verify=True)
    dist.barrier()


def set_threads() -> None:
    """Share the machine's cores among its ranks: more threads than cores slow every rank down."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))


def open_shards(folder: Path, tokenizer: str, context: int) -> ShardReader:
    """A reader of complete shards. Raises UserError for another tokenizer's or for too long samples."""
    reader = ShardReader(folder)
    if reader.manifest["tokenizer"] != tokenizer:
        raise UserError(
            f"{folder}: made with another tokenizer than model.path's: delete the folder, run again."
        )
    longest = int(reader.lengths_N.max())
    if longest > context:
        raise UserError(
            f"training.context = {context}: the longest sample has {longest} tokens, "
            f"raise context to {longest} or lower prompts.history_items."
        )
    return reader


def make_stream(config: RunConfig, source: ShardReader, rank: int, world_size: int) -> PackedStream:
    training = config.training
    return PackedStream(
        source, training.pack_length, training.rows_per_step, training.window, config.seed, rank, world_size
    )


def callbacks(config: RunConfig, label: str, corpus: Path, out: Path) -> list[Callback]:
    """Log first, so that a validation row follows its step; checkpoint last."""
    training = config.training
    log = MetricsLog(out, training.tensorboard)
    made: list[Callback] = [Console(label, training.log_every), log]
    if (corpus / "valid" / "manifest.json").is_file():
        source = ShardReader(corpus / "valid")
        stream = make_stream(config, source, dist.get_rank(), dist.get_world_size())
        made.append(Evaluation(label, stream, training.evaluate_every, log))
    made.append(Checkpoint(out / "checkpoints", training.checkpoint_every, training.keep_checkpoints))
    return made


def export(engine: Engine, folder: Path, tokenizer: object, step: int) -> None:
    """Export into a temporary folder and rename, manifest last; checkpoints then have served."""
    temporary = folder.with_name(folder.name + ".tmp")
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
    dist.barrier()
    engine.export(temporary, tokenizer)
    if dist.get_rank() == 0:
        os.replace(temporary, folder)
        write_manifest(folder, steps=step)
        shutil.rmtree(folder.parent / "checkpoints", ignore_errors=True)
    dist.barrier()
