"""Stages generate_*: the questions answered (inference phase), in chunks that a cut-off run keeps.

    answers/METHOD/FAMILY_PROMPT/chunk-00000.jsonl ...   one line a question, manifest last

Families whose answer is an item are asked with the trie of the catalogue (beams) and, if wanted, once more
without it (one free answer). The others are asked for free text. Dynamic positions come from the entity pool.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recloom.data_shards.artifacts import atomic_write_text, read_manifest, write_manifest
from recloom.data_shards.blank_rows import behind_prefix, body_text
from recloom.data_shards.errors import UserError
from recloom.data_shards.masking import MaskIds, blank
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.shards import ShardReader
from recloom.kernels.beam_search import Generated
from recloom.kernels.token_trie import TokenTrie
from recloom.kernels.trie_build import trie_of
from recloom.trainer.stages import Run
from recloom.trainer.systems.recsysllm.corpus import Prompt, families_of, make_renderer, make_world
from recloom.trainer.systems.recsysllm.decoding import Question, fill_blanks, find_items
from recloom.trainer.systems.recsysllm.families import World
from recloom.trainer.systems.recsysllm.methods import Method
from recloom.trainer.systems.recsysllm.network import BlankInfiller, mask_ids
from recloom.trainer.systems.recsysllm.positions import entity_pool, entity_texts
from recloom.trainer.systems.recsysllm.saved import load_model
from recloom.trainer.systems.recsysllm.settings import FamilyName, RecSysLLMConfig

ITEM_FAMILIES: tuple[FamilyName, ...] = ("sequential", "direct")
CHUNK = 64  # questions between two savings


@dataclass(frozen=True)
class Answerer:
    """A trained model with the tries that its answers go along. items: titles closed by [END]."""

    network: BlankInfiller
    ids: MaskIds
    renderer: Renderer
    pool: TokenTrie
    items: TokenTrie
    config: RecSysLLMConfig
    method: Method

    @classmethod
    def load(cls, run: Run[RecSysLLMConfig], method: Method, world: World) -> Answerer:
        network, renderer = load_model(run, method), make_renderer(run)
        ids = mask_ids(network.sizes.vocab_size)
        titles = world.options.titles
        values = [text for row in (*world.options.details, *world.features) for text in row.values()]
        items = trie_of(
            [renderer.answer_ids(title) for title in titles], end_token=ids.end, vocab_size=ids.end + 1
        )
        pool = entity_pool(entity_texts(titles, values), renderer, ids.end)
        return cls(network, ids, renderer, pool, items, run.config, method)

    def question(self, reader: ShardReader, index: int) -> Question:
        """A sample with its answer as the one blank, as in training."""
        settings = self.method.settings(self.config)
        body = body_text(reader, index, len(self.renderer.prefix_ids))
        masked = blank(body.ids_T, body.entity_spans, [body.answer], settings, self.ids, "document")
        return Question.of(behind_prefix(masked, self.renderer.prefix_ids), settings)

    def answer(self, questions: Sequence[Question], metas: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What is kept of each answer: text, and for items the ranking."""
        ask = self.config.ask
        is_item = metas[0]["task"] in ITEM_FAMILIES
        answers: list[dict[str, Any]] = [{} for _ in questions]
        if is_item:
            for kept, found in zip(answers, self.search(questions, metas), strict=True):
                kept |= {"ranked": found.items, "scores": [round(score, 5) for score in found.scores]}
        if not is_item or ask.free:
            spans = fill_blanks(self.network, questions, self.pool, self.ids, ask.max_tokens)
            for kept, (tokens,) in zip(answers, spans, strict=True):
                kept["text"] = self.renderer.text(tokens)
        return answers

    def search(self, questions: Sequence[Question], metas: Sequence[dict[str, Any]]) -> list[Generated]:
        """Beams among the candidates of a direct question, else among all items."""
        allowed = [meta["items"] for meta in metas] if metas[0]["task"] == "direct" else None
        beams, k = self.config.ask.beams, max(self.config.evaluate.ks)
        return find_items(self.network, questions, self.items, self.ids, beams, k, allowed)


def answers_folder(run: Run[RecSysLLMConfig], method: Method, family: FamilyName, prompt: Prompt) -> Path:
    return run.path(f"answers/{method.key}/{family}_{prompt}")


def run_generate(run: Run[RecSysLLMConfig], method: Method) -> None:
    """Ask all questions of the method's families."""
    world = make_world(run)
    answerer = Answerer.load(run, method, world)
    for family in method.of(families_of(run.config, world.tables)):
        for prompt in run.config.ask.prompts:
            reader = open_questions(run, family, prompt)
            ask_all(answerer, reader, answers_folder(run, method, family, prompt), f"{family}, {prompt}")


def open_questions(run: Run[RecSysLLMConfig], family: FamilyName, prompt: Prompt) -> ShardReader:
    """The test rows as questions. Raises UserError for a damaged folder: a flipped byte must not be asked."""
    folder = run.path(f"asked/{family}_{prompt}")
    read_manifest(folder, verify=True)
    return ShardReader(folder)


def ask_all(answerer: Answerer, reader: ShardReader, folder: Path, label: str) -> None:
    """Questions in the order of their lengths, so that batches are padded little."""
    folder.mkdir(parents=True, exist_ok=True)
    order = sorted(range(len(reader)), key=lambda index: int(reader.lengths_N[index]))
    chunks = [order[begin : begin + CHUNK] for begin in range(0, len(order), CHUNK)]
    with tqdm(total=len(order), desc=label, unit="question", disable=None) as bar:
        for number, chunk in enumerate(chunks):
            path = folder / f"chunk-{number:05d}.jsonl"
            if not path.is_file():
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in asked(answerer, reader, chunk))
                atomic_write_text(path, "".join(lines))
            bar.update(len(chunk))
    write_manifest(folder, kind="answers", num_answers=len(order))


def asked(answerer: Answerer, reader: ShardReader, chunk: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One line a question: its number, what the sample's meta says, and the answer."""
    batch = answerer.config.ask.batch
    for begin in range(0, len(chunk), batch):
        part = chunk[begin : begin + batch]
        records = [reader.record(index) for index in part]
        metas = [record["meta"] for record in records]
        questions = [answerer.question(reader, index) for index in part]
        for index, record, kept in zip(part, records, answerer.answer(questions, metas), strict=True):
            yield {"index": index, "key": record["key"], **record["meta"], **kept}


def read_answers(
    run: Run[RecSysLLMConfig], method: Method, family: FamilyName, prompt: Prompt
) -> list[dict[str, Any]]:
    """The answers in the order of the questions. Raises UserError for a damaged or incomplete folder."""
    folder = answers_folder(run, method, family, prompt)
    told = read_manifest(folder, verify=True)
    paths = sorted(folder.glob("chunk-*.jsonl"))
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    if sorted(row["index"] for row in rows) != list(range(told["num_answers"])):
        raise UserError(f"{folder}: answers are missing: run again from --from generate_{method.key}.")
    return sorted(rows, key=lambda row: row["index"])
