"""The stages of RecSysLLM, in order."""

from __future__ import annotations

from typing import Any

from recloom.data_shards.textualize.template_sets import set_path
from recloom.trainer.shared_stages import prepare_stage, report_stage
from recloom.trainer.stage_inputs import model_files, training_settings
from recloom.trainer.stages import Run, Stage
from recloom.trainer.systems.recsysllm import baselines, corpus, evaluate, generate, pretrain
from recloom.trainer.systems.recsysllm.methods import Method, asked_methods
from recloom.trainer.systems.recsysllm.settings import FAMILIES, PretrainBlock, RecSysLLMConfig

MODEL = ("model.path", "model.dtype", "parallel.zero_stage", "seed")


def stages(config: RecSysLLMConfig) -> list[Stage]:
    found = [prepare_stage(), corpus_stage(), questions_stage()]
    methods = asked_methods(config)
    if config.backbones.tasks:
        found.append(backbones_stage())
    found += [pretrain_stage(method) for method in methods]
    found += [generate_stage(method) for method in methods]
    return [*found, evaluate_stage(config), report_stage("evaluate")]


def corpus_inputs(run: Run[RecSysLLMConfig]) -> Any:
    """The tokenizer, and the texts of the template sets: an edited one makes other samples."""
    paths = [set_path(run.config.corpus.templates, family) for family in FAMILIES]
    return [model_files(run), [path.read_text() if path.is_file() else None for path in paths]]


def corpus_stage() -> Stage:
    return Stage(
        "corpus",
        "write the tables as texts of the task families",
        "process",
        needs=("prepare",),
        settings=("corpus", "model.path"),
        outputs=("corpus",),
        run=corpus.run_corpus,
        inputs=corpus_inputs,
    )


def questions_stage() -> Stage:
    return Stage(
        "questions",
        "write the test rows as questions",
        "process",
        needs=("prepare",),
        settings=("corpus", "model.path", "ask.users", "ask.prompts"),
        outputs=("asked",),
        run=corpus.run_questions,
        inputs=corpus_inputs,
    )


def backbones_stage() -> Stage:
    return Stage(
        "backbones",
        "fit the recommenders to compare with",
        "process",
        needs=("prepare",),
        settings=("backbones", "seed"),
        outputs=("backbones",),
        run=baselines.run_backbones,
    )


def pretrain_stage(method: Method) -> Stage:
    return Stage(
        f"pretrain_{method.key}",
        f"blank infilling ({method.name})",
        "ranks",
        needs=("corpus",),
        settings=(*MODEL, "mask", *training_settings("pretrain", PretrainBlock)),
        outputs=(f"tune/{method.key}",),
        run=lambda run: pretrain.run_pretrain(run, method),
        inputs=model_files,
    )


def generate_stage(method: Method) -> Stage:
    """All answers of a method; more users asked, or other ones, ask again without any training."""
    return Stage(
        f"generate_{method.key}",
        f"answer the questions ({method.name})",
        "process",
        needs=("questions", f"pretrain_{method.key}"),
        settings=("ask.beams", "ask.free", "ask.max_tokens", "evaluate.ks", "model.dtype"),
        outputs=(f"answers/{method.key}",),
        run=lambda run: generate.run_generate(run, method),
    )


def evaluate_stage(config: RecSysLLMConfig) -> Stage:
    generated = (f"generate_{method.key}" for method in asked_methods(config))
    backbones = ("backbones",) if config.backbones.tasks else ()
    return Stage(
        "evaluate",
        "compare with the test rows",
        "process",
        needs=(*generated, *backbones),
        settings=("methods", "evaluate"),
        outputs=("results.jsonl", "per_user.parquet"),
        run=evaluate.run_evaluate,
    )
