"""What blank infilling is trained on: the families' shards under a method's masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recloom.data_shards.blank_rows import BlankRows
from recloom.data_shards.renderer import SlotPosition
from recloom.data_shards.shards import ShardReader
from recloom.data_shards.spans import token_texts
from recloom.trainer.models import load_tokenizer, resolve_model
from recloom.trainer.preparation import load_data
from recloom.trainer.shard_training import Lesson, open_shards
from recloom.trainer.stages import Run
from recloom.trainer.systems.recsysllm.corpus import families_of, make_renderer
from recloom.trainer.systems.recsysllm.methods import Method
from recloom.trainer.systems.recsysllm.network import mask_ids
from recloom.trainer.systems.recsysllm.objective import BlankLoss
from recloom.trainer.systems.recsysllm.settings import RecSysLLMConfig


class Joined:
    """Several folders of shards as one source of samples."""

    has_slots = False

    def __init__(self, readers: Sequence[ShardReader]) -> None:
        self._readers = readers
        self._starts = np.cumsum([0, *(len(reader) for reader in readers)])
        self.lengths_N = np.concatenate([reader.lengths_N for reader in readers])
        self.num_prompt_N = np.concatenate([reader.num_prompt_N for reader in readers])

    def ids(self, index: int) -> np.ndarray:
        reader, place = self._find(index)
        return reader.ids(place)

    def record(self, index: int) -> dict[str, Any]:
        reader, place = self._find(index)
        return reader.record(place)

    def slots(self, index: int) -> list[SlotPosition]:
        return []

    def _find(self, index: int) -> tuple[ShardReader, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._readers[number], int(index - self._starts[number])


def make_lesson(run: Run[RecSysLLMConfig], method: Method) -> Lesson:
    """The method's families under its masks; the validation loss is of answers alone."""
    config, renderer = run.config, make_renderer(run)
    families = method.of(families_of(config, load_data(run)[0]))
    base = resolve_model(config.model.path, run.cache)
    texts = token_texts(vocabulary(load_tokenizer(base)))
    ids = mask_ids(embedding_rows(base))
    remedy = "lower corpus.history_items, corpus.negatives or corpus.review_words"

    def read(part: str) -> Joined:
        folders = [run.path(f"corpus/{family}_{part}") for family in families]
        context, fingerprint = config.pretrain.context, renderer.fingerprint()
        return Joined([open_shards(folder, fingerprint, context, remedy) for folder in folders])

    def rows(source: Joined, answer_share: float) -> BlankRows:
        settings = method.settings(config)
        return BlankRows(source, settings, answer_share, ids, texts, renderer.prefix_ids, config.seed)

    train = read("train")
    valid = read("valid") if config.corpus.valid_samples else None
    return Lesson(
        train,
        valid,
        rows(train, config.pretrain.answer_share),
        rows(valid, 1.0) if valid is not None else None,
        lambda engine: BlankLoss(engine.device, engine.layout),
    )


def vocabulary(tokenizer: Any) -> list[str]:
    """What every token id is written as in the vocabulary."""
    found: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [token or "" for token in found]


def embedding_rows(model_path: str) -> int:
    """Rows of a model's embedding, from its config."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(model_path).vocab_size)
