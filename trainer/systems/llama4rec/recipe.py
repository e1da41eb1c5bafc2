"""The stages of Llama4Rec, in order (Figure 1 of the paper)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recloom.trainer.shared_stages import prepare_stage, report_stage
from recloom.trainer.stage_inputs import model_files, template_texts, training_settings
from recloom.trainer.stages import Run, Stage, content_of, folder_state
from recloom.trainer.systems.llama4rec import aggregate, augment, backbones, instructions, rank, tune
from recloom.trainer.systems.llama4rec.settings import InstructionTraining, Llama4RecConfig

ASKING = ("bulk.dtype", "bulk.max_model_len", "bulk.scoring", "prompts", "seed")
MODEL = ("model.path", "model.dtype", "model.attention")
TRAINING = training_settings("training", InstructionTraining)


def stages(config: Llama4RecConfig) -> list[Stage]:
    """The recipe for a config; with `model.tuned` nothing is tuned."""
    tuning = [] if config.model.tuned else tuning_stages(config)
    tuned = tuple(stage.name for stage in tuning if stage.where == "ranks")
    return [*data_stages(), *tuning, *using_stages(config, tuned)]


def data_stages() -> list[Stage]:
    return [
        prepare_stage("read the data set, split it"),
        Stage(
            "backbone",
            "fit the conventional models, plain and cross-fitted",
            "process",
            needs=("prepare",),
            settings=("backbones", "instructions.holdback", "seed"),
            outputs=("backbones/base", "backbones/inner"),
            run=backbones.run_backbones,
        ),
    ]


def tuning_stages(config: Llama4RecConfig) -> list[Stage]:
    """The corpus, then one stage a tuned model: the IFT baseline has its own unless it is shared."""
    corpus = Stage(
        "instructions",
        "write the instruction shards",
        "process",
        needs=("backbone",),
        settings=("prompts", "instructions", "model.path", "training.ift", "disliked_below", "seed"),
        outputs=("instructions",),
        run=instructions.run_instructions,
        inputs=lambda run: [template_files(run), model_files(run), mixed_corpora(run)],
    )
    return [corpus, *(tune_stage(name) for name in tune.tuned_models(config))]


def using_stages(config: Llama4RecConfig, tuned: tuple[str, ...]) -> list[Stage]:
    """Everything behind the tuned model; tuned: the stages that made it, none with `model.tuned`."""
    return [
        Stage(
            "augment",
            "let the LLM make training data for the conventional models",
            "vllm",
            needs=("backbone", *(name for name in tuned if name == tune.stage_name("llama4rec"))),
            settings=("augment", "rank.constrained", "rank.max_answer_tokens", "model.tuned", *ASKING),
            outputs=("augment", "bulk/augment"),
            run=augment.run_augment,
            passes=augment.passes,
            inputs=lambda run: [tuned_files(run), reused_files(run)],
        ),
        Stage(
            "backbone_again",
            "fit the conventional models on the augmented data",
            "process",
            needs=("backbone", "augment"),
            settings=("backbones", "augment.attributes", "seed"),
            outputs=("backbones/augmented",),
            run=backbones.run_backbones_again,
        ),
        Stage(
            "rank",
            "let the LLM re-rank candidates and predict ratings",
            "vllm",
            needs=("backbone", "backbone_again", *tuned),
            settings=("rank", "evaluate.ablation", "disliked_below", "model.tuned", *ASKING),
            outputs=tuple(f"bulk/rank_{name}" for name in tune.tuned_models(config)),
            run=rank.run_rank,
            passes=rank.passes,
            inputs=tuned_files,
        ),
        Stage(
            "aggregate",
            "combine LLM and conventional models",
            "process",
            needs=("rank",),
            settings=("evaluate", "rank", "seed"),
            outputs=("results.jsonl", "per_user.parquet", "aggregate.json"),
            run=aggregate.run_aggregate,
        ),
        report_stage("aggregate"),
    ]


def tune_stage(name: str) -> Stage:
    """Full-parameter tuning of one model on all ranks."""
    return Stage(
        tune.stage_name(name),
        f"tune all parameters of the LLM ({name})",
        "ranks",
        needs=("instructions",),
        settings=(*MODEL, *TRAINING, "parallel.zero_stage", "seed"),
        outputs=(f"tune/{name}",),
        run=lambda run: tune.run_tune(run, name),
        inputs=model_files,
    )


def tuned_files(run: Run[Llama4RecConfig]) -> Any:
    """The models of the run that `model.tuned` names; nothing for models tuned here."""
    if run.config.model.tuned is None:
        return None
    return [folder_state(tune.model_folder(run, name)) for name in tune.tuned_models(run.config)]


def reused_files(run: Run[Llama4RecConfig]) -> Any:
    """The records of the run that `augment.reuse` names."""
    reused = run.config.augment.reuse
    return reused and content_of([Path(reused).expanduser() / "augment"])


def mixed_corpora(run: Run[Llama4RecConfig]) -> Any:
    """The manifests of the corpora that are mixed in."""
    return content_of(
        path
        for name in run.config.instructions.also
        for path in sorted(Path(name).expanduser().glob("instructions/*/*/manifest.json"))
    )


def template_files(run: Run[Llama4RecConfig]) -> Any:
    """The texts of the templates that instructions are made of."""
    prompts = run.config.prompts
    return template_texts((prompts.listwise_template, prompts.rating_template))
