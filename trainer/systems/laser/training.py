"""Stages bitune_1_* and bitune_2_*: Bi-Tuning of one method, on all ranks (section 3.3.2).

Shapes: I items, H width of the LLM.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from recloom.data_shards.artifacts import MANIFEST, read_manifest
from recloom.data_shards.renderer import Renderer
from recloom.trainer.callbacks.callback import Callback
from recloom.trainer.callbacks.checkpoint import Checkpoint
from recloom.trainer.callbacks.console import Console
from recloom.trainer.callbacks.metrics_log import MetricsLog
from recloom.trainer.callbacks.preemption import Preemption
from recloom.trainer.engine import (
    Engine,
    deepspeed_json,
    embedding_mean,
    embedding_scale,
    load_partitioned,
)
from recloom.trainer.loop import Loop
from recloom.trainer.models import resolve_model
from recloom.trainer.shard_training import (
    DeepSpeedSettings,
    check_shards,
    finish,
    make_stream,
    open_shards,
    set_threads,
)
from recloom.trainer.stages import Run
from recloom.trainer.systems.laser.bituning import BiTuning
from recloom.trainer.systems.laser.embedding import read_vectors
from recloom.trainer.systems.laser.epochs import ITEMS, METRIC, Epochs
from recloom.trainer.systems.laser.methods import Method
from recloom.trainer.systems.laser.network import load_weights, make_network, read_weights
from recloom.trainer.systems.laser.objective import LaserLoss, RowReader
from recloom.trainer.systems.laser.settings import LaserConfig, StageBlock
from recloom.trainer.systems.laser.states import States, method_states
from recloom.trainer.systems.laser.texts import make_renderer

SHORTER = "lower texts.history_items or texts.title_words"


def out_folder(run: Run[LaserConfig], method: Method, stage: int) -> Path:
    """Checkpoints and logs of a method's stage; its `model` folder is the result."""
    key = method.trained_as or method.key
    return run.path(f"tune/{key}_{stage}")


def run_bitune(run: Run[LaserConfig], method: Method, stage: int) -> None:
    """Train one stage of one method. Called on every rank."""
    config, settings = run.config, stage_settings(run.config, method, stage)
    out, label = out_folder(run, method, stage), f"bitune {stage} {method.key}"
    set_threads()
    torch.manual_seed(config.seed)
    texts = run.path("texts")
    check_shards(texts)
    renderer = make_renderer(run)
    tokenizer = renderer.fingerprint()
    sources = {
        name: open_shards(texts / name, tokenizer, settings.context, SHORTER)
        for name in ("train", "items", "valid")
    }
    states = method_states(run, method)
    ds_config = deepspeed_json(config.model, settings, config.parallel, dist.get_world_size())
    engine = Engine(build(run, method, stage, ds_config, states, renderer), ds_config)
    readers = {name: RowReader(source, states, engine.device) for name, source in sources.items()}
    objective = LaserLoss(readers["train"], config.bitune, experts_of(engine), engine.layout)
    stream = make_stream(
        settings, config.seed, sources["train"], engine.layout, epoch_samples=settings.epoch_samples
    )
    fixed_IH = read_vectors(model_folder(run, method, 1) / ITEMS) if stage == 2 else None
    loop = Loop(
        engine,
        stream,
        settings,
        objective,
        callbacks(run, settings, label, out, objective, readers, fixed_IH),
    )
    state = engine.load(out / "checkpoints")
    if state is not None:
        loop.load_state(state)
    loop.run()
    told = read_manifest(out / "best")
    best = {name: told[name] for name in ("epoch", METRIC)}
    finish(engine, out / "model", lambda engine, folder: take_best(out, folder), loop.step, **best)
    if dist.get_rank() == 0:
        shutil.rmtree(out / "best")
    engine.close()


def stage_settings(config: LaserConfig, method: Method, stage: int) -> StageBlock:
    """Those of the config; stage 1 of a method without it has no epochs."""
    settings: StageBlock = config.stage_1 if stage == 1 else config.stage_2
    return settings if stage in method.stages else settings.model_copy(update={"epochs": 0})


def model_folder(run: Run[LaserConfig], method: Method, stage: int) -> Path:
    return out_folder(run, method, stage) / "model"


def build(
    run: Run[LaserConfig],
    method: Method,
    stage: int,
    ds_config: DeepSpeedSettings,
    states: States | None,
    renderer: Renderer,
) -> BiTuning:
    """The network with the weights that the stage starts from."""
    config = run.config
    llm = load_partitioned(
        resolve_model(config.model.path, run.cache),
        ds_config,
        config.model,
        stage_settings(config, method, stage).gradient_checkpointing,
        frozen=True,
    )
    network = make_network(
        llm.base_model,
        method,
        config.bitune,
        0 if states is None else states.width,
        embedding_scale(llm),
        embedding_mean(llm),
        renderer.eos_id,
        len(renderer.prefix_ids),
    )
    start = start_folder(run, method, stage)
    if start is not None:
        load_weights(network, read_weights(start), start)
    return network


def start_folder(run: Run[LaserConfig], method: Method, stage: int) -> Path | None:
    """Where the weights come from at the start of a stage; None: they are fresh."""
    if stage == 2:
        return model_folder(run, method, 1)
    start_from = run.config.bitune.start_from
    return None if start_from is None else final_model(Path(start_from).expanduser(), method)


def final_model(folder: Path, method: Method) -> Path:
    """The model of the last stage that a method of a finished run went through."""
    key = method.trained_as or method.key
    found = [path for stage in (2, 1) if (path := folder / f"tune/{key}_{stage}/model").is_dir()]
    return found[0] if found else folder / f"tune/{key}_1/model"


def experts_of(engine: Engine) -> int | None:
    mformer = engine.engine.module.mformer
    return None if mformer is None else int(mformer.settings.experts)


def callbacks(
    run: Run[LaserConfig],
    settings: StageBlock,
    label: str,
    out: Path,
    objective: LaserLoss,
    readers: dict[str, RowReader],
    fixed_IH: Tensor | None,
) -> list[Callback]:
    """Log first, so that a validation row follows its step; checkpoint last, and only then leave."""
    log = MetricsLog(out, settings.tensorboard)
    checkpoint = Checkpoint(
        out / "checkpoints", settings.checkpoint_every, settings.keep_checkpoints, epochs=True
    )
    return [
        Console(label, settings.log_every),
        log,
        Epochs(label, objective, readers["items"], readers["valid"], run.config.embed, out, log, fixed_IH),
        checkpoint,
        Preemption(checkpoint),
    ]


def take_best(out: Path, folder: Path) -> None:
    """The best epoch becomes the stage's model, item embeddings beside it; what was embedded has served."""
    if dist.get_rank() == 0:
        shutil.copytree(out / "best", folder)
        (folder / MANIFEST).unlink()
        for served in ("asked", "items"):
            shutil.rmtree(out / served, ignore_errors=True)
