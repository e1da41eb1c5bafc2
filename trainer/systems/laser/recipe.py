"""The stages of Laser, in order (Figure 2 of the paper)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recloom.trainer.shared_stages import prepare_stage, report_stage
from recloom.trainer.stage_inputs import model_files, template_texts, training_settings
from recloom.trainer.stages import Run, Stage, content_of, folder_state
from recloom.trainer.systems.laser import backbones, evaluate, export, rank, texts, training, vllm_rank
from recloom.trainer.systems.laser.methods import Method, asked_methods, stage_numbers, trained_methods
from recloom.trainer.systems.laser.settings import LaserConfig, StageBlock

LEARNED = ("learn.targets", "learn.share", "learn.users", "learn.samples", "learn.seed")
MODEL = ("model.path", "model.dtype", "model.attention", "parallel.zero_stage", "seed")


def stages(config: LaserConfig) -> list[Stage]:
    fits = [backbone_stage(), baselines_stage()] if config.baselines else [backbone_stage()]
    trained = [
        bitune_stage(method, number)
        for method in trained_methods(config)
        for number in stage_numbers(config, method)
    ]
    models = tuple(stage.name for stage in trained)
    # Texts come before what takes minutes: a template or a start token that does not fit is told at once.
    first = [prepare_stage(), texts_stage(), asked_texts_stage()]
    return [*first, *fits, *trained, *asking_stages(config, models)]


def backbone_stage() -> Stage:
    return Stage(
        "backbone",
        "fit the conventional recommender that M-Former reads",
        "process",
        needs=("prepare",),
        settings=("backbones", *LEARNED, "texts.history_items", "seed"),
        outputs=("backbone", "states"),
        run=backbones.run_backbone,
        inputs=lambda run: content_of(backbones.backbone_files(run.config)),
    )


def baselines_stage() -> Stage:
    return Stage(
        "baselines",
        "fit the recommenders to compare with",
        "process",
        needs=("prepare",),
        settings=("baselines", "learn.share", "learn.seed", "seed"),
        outputs=("baselines",),
        run=backbones.run_baselines,
    )


def texts_stage() -> Stage:
    return Stage(
        "texts",
        "write users and items as texts",
        "process",
        needs=("prepare",),
        settings=("texts", *LEARNED, "learn.validation", "model.path"),
        outputs=tuple(f"texts/{part}" for part in texts.LEARNED_PARTS),
        run=lambda run: texts.run_texts(run, texts.LEARNED_PARTS),
        inputs=lambda run: [template_files(run), model_files(run)],
    )


def asked_texts_stage() -> Stage:
    """By itself, so that asking more users trains nothing again."""
    return Stage(
        "texts_test",
        "write the users at test as texts",
        "process",
        needs=("prepare",),
        settings=("texts", "learn.test", "learn.seed", "model.path"),
        outputs=("texts/test",),
        run=lambda run: texts.run_texts(run, ("test",)),
        inputs=lambda run: [template_files(run), model_files(run)],
    )


def bitune_stage(method: Method, number: int) -> Stage:
    """Stage 2 starts from stage 1's best epoch and takes its item embeddings."""
    block = "stage_1" if number == 1 else "stage_2"
    first = (f"bitune_1_{method.key}",) if number == 2 else ()
    against = "fixed item embeddings" if number == 2 else "item embeddings of each epoch"
    return Stage(
        f"bitune_{number}_{method.key}",
        f"stage {number}: Bi-Tuning against {against} ({method.name})",
        "ranks",
        needs=("backbone", "texts", *first),
        settings=(*MODEL, "bitune", "embed.pack_length", *training_settings(block, StageBlock)),
        outputs=(f"tune/{method.key}_{number}",),
        run=lambda run: training.run_bitune(run, method, number),
        inputs=lambda run: [model_files(run), started_from(run, method)],
    )


def asking_stages(config: LaserConfig, models: tuple[str, ...]) -> list[Stage]:
    baselines = ("baselines",) if config.baselines else ()
    return [
        rank_stage(config, ("texts_test", *models)),
        Stage(
            "export",
            "the items' vectors as a matrix and as a faiss index",
            "process",
            needs=models,
            settings=("methods",),
            outputs=("export",),
            run=export.run_export,
        ),
        Stage(
            "evaluate",
            "compare on the whole catalogue",
            "process",
            needs=("rank", "backbone", *baselines),
            settings=("methods", "baselines", "rank.mask_seen", "evaluate"),
            outputs=("results.jsonl", "per_user.parquet", "parameters.json"),
            run=evaluate.run_evaluate,
        ),
        report_stage("evaluate"),
    ]


def rank_stage(config: LaserConfig, needs: tuple[str, ...]) -> Stage:
    """In this process, or by bulk passes."""
    title = "users at test as vectors, the catalogue ranked"
    settings: tuple[str, ...] = ("methods", "rank", "model.dtype")
    if config.rank.engine == "hf":
        settings = (*settings, "embed.pack_length")
        return Stage("rank", title, "process", needs, settings, ("rank",), rank.run_rank, inputs=model_files)
    passes = (f"bulk/{vllm_rank.pass_name(method)}" for method in asked_methods(config))
    return Stage(
        "rank",
        title,
        "vllm",
        needs,
        (*settings, "bulk.dtype", "bulk.max_model_len"),
        ("rank", *passes),
        vllm_rank.run_vllm_rank,
        passes=vllm_rank.passes,
        inputs=model_files,
    )


def template_files(run: Run[LaserConfig]) -> Any:
    names = run.config.texts
    return template_texts((names.template, names.item_template or names.template))


def started_from(run: Run[LaserConfig], method: Method) -> Any:
    """The model of another run that training starts from, where there is one."""
    start_from = run.config.bitune.start_from
    if start_from is None:
        return None
    return folder_state(training.final_model(Path(start_from).expanduser(), method))
