"""The stages of RecSysLLM, in order."""

from __future__ import annotations

from recloom.trainer.shared_stages import prepare_stage
from recloom.trainer.stage_inputs import model_files, training_settings
from recloom.trainer.stages import Stage
from recloom.trainer.systems.recsysllm import corpus, pretrain
from recloom.trainer.systems.recsysllm.methods import Method, asked_methods
from recloom.trainer.systems.recsysllm.settings import PretrainBlock, RecSysLLMConfig

MODEL = ("model.path", "model.dtype", "parallel.zero_stage", "seed")


def stages(config: RecSysLLMConfig) -> list[Stage]:
    found = [prepare_stage(), corpus_stage(), questions_stage()]
    found += [pretrain_stage(method) for method in asked_methods(config)]
    return found


def corpus_stage() -> Stage:
    return Stage(
        "corpus",
        "write the tables as texts of the task families",
        "process",
        needs=("prepare",),
        settings=("corpus", "model.path"),
        outputs=("corpus",),
        run=corpus.run_corpus,
        inputs=model_files,
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
        inputs=model_files,
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
