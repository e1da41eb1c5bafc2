"""The stages of A-LLMRec, in order (Figure 2 of the paper)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recloom.trainer.shared_stages import prepare_stage, report_stage
from recloom.trainer.stage_inputs import model_files, template_texts, training_settings
from recloom.trainer.stages import Run, Stage, content_of, folder_state
from recloom.trainer.systems.a_llmrec import (
    align_stage,
    backbones,
    evaluate,
    genres,
    prepare,
    project,
    prompts,
    rank,
    vllm_rank,
)
from recloom.trainer.systems.a_llmrec.methods import asked_methods, projected
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig, LoraBlock, MethodName, ProjectBlock

MODEL = ("model.path", "model.dtype", "model.attention", "parallel.zero_stage", "seed")
QUESTIONS = (
    "prompts.template",
    "prompts.item_noun",
    "prompts.verb",
    "prompts.history_items",
    "prompts.title_words",
    "prompts.soft_token",
    "project.user_vector",
    "project.item_vectors",
)
PROMPTS = tuple(f"project.{name}" for name in ("targets", "negatives", "draws", "users", "validation"))


def stages(config: ALLMRecConfig) -> list[Stage]:
    """The recipe for a config; where another run's models answer, nothing is learned here."""
    prepared = prepare_stage(
        "read the data set, draw the candidates",
        ("scenario.negatives", "scenario.seed"),
        prepare.run_prepare,
    )
    if config.scenario.trained is not None:
        return [prepared, *asking_stages(config, ("prepare",))]
    trained = training_stages(config)
    made = ("backbone", *(stage.name for stage in trained))
    return [prepared, *data_stages(config), *trained, *asking_stages(config, made)]


def data_stages(config: ALLMRecConfig) -> list[Stage]:
    found = [
        Stage(
            "backbone",
            "fit the conventional recommender",
            "process",
            needs=("prepare",),
            settings=("backbones", "scenario.name", "scenario.truncated_cold_users", "seed"),
            outputs=("backbone",),
            run=backbones.run_backbone,
            inputs=vector_files,
        ),
    ]
    if "a_llmrec" in config.methods:
        found.append(
            Stage(
                "align",
                "stage 1: joint embeddings of collaborative and textual knowledge",
                "process",
                needs=("backbone",),
                settings=("align", "item_text", "seed"),
                outputs=("align",),
                run=align_stage.run_align,
                inputs=encoder_files,
            )
        )
    return [*found, *(prompts_stage(name) for name in prompts.corpora(config))]


def prompts_stage(name: prompts.CorpusName) -> Stage:
    """A stage a corpus, so that a method more makes nothing again."""
    return Stage(
        f"prompts_{name}",
        f"write the questions of stage 2 ({name})",
        "process",
        needs=("backbone",),
        settings=(*QUESTIONS, *PROMPTS, "model.path", "seed"),
        outputs=(f"prompts/{name}",),
        run=lambda run: prompts.run_prompts(run, name),
        inputs=lambda run: [template_files(run), model_files(run)],
    )


def training_stages(config: ALLMRecConfig) -> list[Stage]:
    """One stage a trained method; each runs on all ranks."""
    found = [project_stage(name) for name in projected(config)]
    if "tallrec" in config.methods:
        settings = (*MODEL, *training_settings("lora", LoraBlock))
        found.append(
            Stage(
                "lora",
                "TALLRec: low-rank adaptation of the LLM on text",
                "ranks",
                needs=("prompts_text",),
                settings=settings,
                outputs=("tune/tallrec",),
                run=project.run_lora,
                inputs=model_files,
            )
        )
    return found


def project_stage(name: MethodName) -> Stage:
    aligned = ("align",) if name == "a_llmrec" else ()
    return Stage(
        f"project_{name}",
        f"stage 2: project vectors into the LLM's token space ({name})",
        "ranks",
        needs=("prompts_soft", *aligned),
        settings=(*MODEL, *training_settings("project", ProjectBlock)),
        outputs=(f"tune/{name}",),
        run=lambda run: project.run_project(run, name),
        inputs=model_files,
    )


def asking_stages(config: ALLMRecConfig, needs: tuple[str, ...]) -> list[Stage]:
    free_text = [genres_stage(needs)] if config.genres else []
    return [
        rank_stage(config, needs),
        *free_text,
        Stage(
            "evaluate",
            "compare with the backbone on the same candidates",
            "process",
            needs=("rank",),
            settings=("evaluate", "seed"),
            outputs=("results.jsonl", "per_user.parquet", "times.json"),
            run=evaluate.run_evaluate,
        ),
        report_stage("evaluate", *(stage.name for stage in free_text)),
    ]


def rank_stage(config: ALLMRecConfig, needs: tuple[str, ...]) -> Stage:
    """In this process, or by bulk passes."""
    # item_text: of another data set's items, where this run has no stage `align`
    settings: tuple[str, ...] = (*QUESTIONS, "scenario", "methods", "item_text", "model.path")
    title = "let the LLM rank the candidates"
    if config.rank.engine == "hf":
        settings = (*settings, "model.dtype", "rank")
        return Stage("rank", title, "process", needs, settings, ("rank",), rank.run_rank, inputs=asking_files)
    outputs = ("rank", *(f"bulk/rank_{method.key}" for method in asked_methods(config)))
    return Stage(
        "rank",
        title,
        "vllm",
        needs,
        (*settings, "bulk.dtype", "bulk.max_model_len", "rank"),
        outputs,
        vllm_rank.run_vllm_rank,
        passes=vllm_rank.passes,
        inputs=asking_files,
    )


def genres_stage(needs: tuple[str, ...]) -> Stage:
    return Stage(
        "genres",
        "ask for favourite genres in free text",
        "process",
        needs=needs,
        settings=("genres", "scenario", "prompts", "model.path", "model.dtype"),
        outputs=("genres.jsonl",),
        run=genres.run_genres,
        inputs=asking_files,
    )


def vector_files(run: Run[ALLMRecConfig]) -> Any:
    """Checksums of the files that a backbone reads, where it reads any."""
    return content_of(backbones.backbone_files(run.config))


def encoder_files(run: Run[ALLMRecConfig]) -> Any:
    """What a local sentence encoder holds now; nothing for a built-in one."""
    return folder_state(Path(run.config.item_text.encoder).expanduser())


def trained_files(run: Run[ALLMRecConfig]) -> Any:
    """The models of the run that `scenario.trained` names; nothing for models trained here."""
    trained = run.config.scenario.trained
    return trained and [folder_state(Path(trained).expanduser() / name) for name in ("align", "tune")]


def template_files(run: Run[ALLMRecConfig]) -> Any:
    """The texts of the templates that questions are made of."""
    prompts = run.config.prompts
    return template_texts((prompts.template, prompts.genres_template))


def asking_files(run: Run[ALLMRecConfig]) -> Any:
    """All that answers depend on beside this run's own stages."""
    return [template_files(run), model_files(run), trained_files(run)]
