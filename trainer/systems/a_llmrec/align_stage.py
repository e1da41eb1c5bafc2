"""Stage align: stage 1 of the paper on the fitted backbone."""

from __future__ import annotations

from recloom.trainer.collaborative.registry import load_backbone
from recloom.trainer.item_texts import item_texts
from recloom.trainer.sentence_encoder import resolve_encoder
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec.align import train_alignment
from recloom.trainer.systems.a_llmrec.backbones import FOLDER
from recloom.trainer.systems.a_llmrec.prepare import load_task
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig


def run_align(run: Run[ALLMRecConfig]) -> None:
    config, task = run.config, load_task(run)
    train_alignment(
        load_backbone(run.path(FOLDER)),
        task.train_sequences,
        item_texts(task.tables, config.item_text.style, config.item_text.attributes),
        config.align,
        resolve_encoder(config.item_text.encoder, run.cache),
        config.seed,
        run.path("align"),
    )
