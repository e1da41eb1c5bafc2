"""Metrics of answers written by hand, against counting by hand.

Shapes: N questions.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from recsysllm_tables import NUM_ITEMS, shop_run, tables_of, user_rows

from recloom.data_shards.artifacts import write_manifest
from recloom.data_shards.errors import UserError
from recloom.data_shards.shards import ShardReader
from recloom.trainer.collaborative.evaluate import predict_ratings
from recloom.trainer.collaborative.registry import load_backbone
from recloom.trainer.results import Results
from recloom.trainer.stages import Run
from recloom.trainer.systems.recsysllm.baselines import ranks_of, run_backbones
from recloom.trainer.systems.recsysllm.corpus import Prompt, make_world, run_questions
from recloom.trainer.systems.recsysllm.evaluate import add_answers, asked_rows, place_of, run_evaluate
from recloom.trainer.systems.recsysllm.generate import answers_folder, read_answers
from recloom.trainer.systems.recsysllm.methods import METHODS
from recloom.trainer.systems.recsysllm.settings import FAMILIES, FamilyName, RecSysLLMConfig

SHOP = user_rows()
KS = (1, 3)
MEAN = float(np.mean([r["rating"] for rows in SHOP for r in (rows[:-2] if len(rows) > 2 else rows)]))
BACKBONES = {
    "direct": {"model": "mf", "embedding": 4, "max_epochs": 2},
    "sequential": {"model": "sasrec", "embedding": 8, "max_epochs": 1, "max_length": 5},
    "rating": {"model": "deepfm", "embedding": 4, "max_epochs": 1},
}
Meta = dict[str, Any]
Rows = dict[tuple[str, str, str], dict[str, Any]]
ANSWERED: list[tuple[str, float | None]] = [  # what is written for a rating and what it counts as
    ("4", 4.0),
    ("4.3", 4.3),
    (" 3 \nbecause", 3.0),
    ("five", None),
    ("17", 5.0),
    ("", None),
    ("0", 1.0),
]


def ranked(place: int | None, target: int) -> list[int]:
    """Three items, the target at a place from 0 or nowhere."""
    others = [item for item in range(NUM_ITEMS) if item != target][:3]
    return others if place is None else [*others[:place], target, *others[place:]][:3]


def item_answer(number: int, meta: Meta) -> Meta:
    """The target stands first, second, third or nowhere; free answers name it, another item or none."""
    place = (0, 1, 2, None)[number % 4]
    listed = meta["items"] or range(NUM_ITEMS)
    other = next(item for item in listed if item != meta["answer"])
    texts = [f"Item-{meta['answer']:02}", f" Item-{other:02}\n", "Item", f"\nItem-{meta['answer']:02} "]
    scores = [round(-0.5 * n, 5) for n in range(3)]
    return {"ranked": ranked(place, meta["answer"]), "scores": scores, "text": texts[number % 4]}


def text_answer(number: int, meta: Meta) -> Meta:
    """Word for word, its first half, nothing, other words."""
    words = str(meta["answer"]).split()
    texts = [" ".join(words), " ".join(words[: len(words) // 2]), " \n", "quite other words here"]
    return {"text": texts[number % 4]}


def rating_answer(number: int, meta: Meta) -> Meta:
    return {"text": ANSWERED[number % len(ANSWERED)][0]}


MAKERS: dict[FamilyName, Callable[[int, Meta], Meta]] = {
    "rating": rating_answer,
    "sequential": item_answer,
    "explanation": text_answer,
    "review": text_answer,
    "direct": item_answer,
}


def metas_of(run: Run[RecSysLLMConfig], family: FamilyName, prompt: Prompt = "seen") -> list[Meta]:
    reader = ShardReader(run.path(f"asked/{family}_{prompt}"))
    return [reader.record(index)["meta"] for index in range(len(reader))]


def write_answers(run: Run[RecSysLLMConfig], method: Any, family: FamilyName, prompt: Prompt) -> None:
    """In chunks and in an order of their own, as a batch of like lengths is. An unseen prompt's answers are
    those of the next question each, so that its numbers are others."""
    folder = answers_folder(run, METHODS[method], family, prompt)
    folder.mkdir(parents=True)
    metas = metas_of(run, family, prompt)
    shift = int(prompt == "unseen")
    rows = [
        {"index": n, "key": str(n), **meta, **MAKERS[family](n + shift, meta)} for n, meta in enumerate(metas)
    ]
    mixed = [rows[n] for n in np.random.default_rng(0).permutation(len(rows))]
    for number, part in enumerate((mixed[:5], mixed[5:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"chunk-{number:05d}.jsonl").write_text(text)
    write_manifest(folder, kind="answers", num_answers=len(rows))


@pytest.fixture(scope="module")
def run(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Run[RecSysLLMConfig]:
    """A run whose questions are made, whose answers are written by hand, and which is evaluated."""
    run = shop_run(
        tmp_path_factory.mktemp("shop"),
        tiny_llama,
        tables_of(SHOP),
        methods=["recsysllm", "sequential_only"],
        backbones=BACKBONES,
        ask={"free": True, "beams": 7},
    )
    run_questions(run)
    for family in FAMILIES:
        for prompt in run.config.ask.prompts:
            write_answers(run, "recsysllm", family, prompt)
    for prompt in run.config.ask.prompts:
        write_answers(run, "sequential_only", "sequential", prompt)
    run_backbones(run)
    run_evaluate(run)
    return run


def results(run: Run[RecSysLLMConfig]) -> Rows:
    """By task, method and metric."""
    rows = [json.loads(line) for line in (run.folder / "results.jsonl").read_text().splitlines()]
    found = {(row["task"], row["method"], row["metric"]): row for row in rows}
    assert len(found) == len(rows), "no number is there twice"
    return found


def value(rows: Rows, task: str, method: str, metric: str) -> float:
    return float(rows[task, method, metric]["value"])


def measured(
    run: Run[RecSysLLMConfig], family: FamilyName, answers: list[Meta]
) -> dict[tuple[str, str], float]:
    """Values by method and metric of other answers to the questions, of a method x."""
    made, world = Results("shop", 0), make_world(run)
    asked = asked_rows(run.config, world, family, answers)
    add_answers(run.config, world, made, asked, "x", answers)
    return {(row["method"], row["metric"]): row["value"] for row in made.rows}


# --- items --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["RecSysLLM", "RecSysLLM *"])
@pytest.mark.parametrize("task", ["sequential", "direct"])
def test_rankings(run: Run[RecSysLLMConfig], task: FamilyName, method: str) -> None:
    rows, count = results(run), len(metas_of(run, task))
    ranks = [(1, 2, 3, math.inf)[(n + method.endswith("*")) % 4] for n in range(count)]
    for k in KS:
        assert value(rows, task, method, f"H@{k}") == pytest.approx(sum(r <= k for r in ranks) / count)
        gains = [1 / math.log2(r + 1) if r <= k else 0 for r in ranks]
        assert value(rows, task, method, f"N@{k}") == pytest.approx(sum(gains) / count)
    assert value(rows, task, method, "MRR") == pytest.approx(sum(1 / r for r in ranks) / count)
    assert rows[task, method, "H@1"]["users"] == count == len(SHOP) - 1


@pytest.mark.parametrize("task", ["sequential", "direct"])
def test_free_answers(run: Run[RecSysLLMConfig], task: FamilyName) -> None:
    """A hit is the target's whole title, but for white space; no item's title is invalid."""
    rows, count = results(run), len(metas_of(run, task))
    hits, invalid = (sum(n % 4 in kinds for n in range(count)) / count for kinds in ({0, 3}, {2}))
    assert value(rows, task, "RecSysLLM, free", "H@1") == pytest.approx(hits)
    assert value(rows, task, "RecSysLLM, free", "invalid_rate") == pytest.approx(invalid)


def test_a_free_answer_beside_the_candidates_is_invalid(run: Run[RecSysLLMConfig]) -> None:
    """As no item's title is; in a sequential question it is a wrong item."""
    for task, invalid in (("direct", 1.0), ("sequential", 0.0)):
        metas = metas_of(run, task)
        beside = [next(i for i in range(NUM_ITEMS) if i not in {*m["items"], m["answer"]}) for m in metas]
        texts = [f"Item-{item:02}" for item in beside]
        told = {"ranked": [], "scores": []}
        found = measured(
            run, task, [{**meta, **told, "text": t} for meta, t in zip(metas, texts, strict=True)]
        )
        assert (
            found["x, free", "invalid_rate"] == invalid and found["x, free", "H@1"] == 0 == found["x", "MRR"]
        )


def test_place_of() -> None:
    assert [place_of(item, [7, 8]) for item in (7, 8, 9)] == [1, 2, math.inf] and place_of(9, []) == math.inf


# --- ratings and texts --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["RecSysLLM", "RecSysLLM *"])
def test_ratings(run: Run[RecSysLLMConfig], method: str) -> None:
    """What is no number counts as the training rows' mean; what is off the scale, as its end."""
    rows, metas = results(run), metas_of(run, "rating")
    written = [ANSWERED[(n + method.endswith("*")) % len(ANSWERED)][1] for n in range(len(metas))]
    errors = [(MEAN if w is None else w) - m["answer"] for w, m in zip(written, metas, strict=True)]
    assert value(rows, "rating", method, "RMSE") == pytest.approx(math.sqrt(np.mean(np.square(errors))))
    assert value(rows, "rating", method, "MAE") == pytest.approx(np.mean(np.abs(errors)))
    invalid = sum(w is None for w in written) / len(metas)
    assert value(rows, "rating", method, "invalid_rate") == pytest.approx(invalid) and invalid > 0.2


def unigram_f1(answer: str, reference: str) -> float:
    """ROUGE-1 where no word is there twice."""
    one, two = answer.split(), reference.split()
    common = len(set(one) & set(two))
    return 200 * common / (len(one) + len(two)) if common else 0.0


@pytest.mark.parametrize("task", ["explanation", "review"])
def test_texts(run: Run[RecSysLLMConfig], task: FamilyName) -> None:
    rows, metas = results(run), metas_of(run, task)
    texts = [text_answer(n, meta)["text"] for n, meta in enumerate(metas)]
    references = [meta["answer"] for meta in metas]
    assert all(len(set(text.split())) == len(text.split()) for text in references), "ROUGE-1 is easy then"
    f1 = np.mean([unigram_f1(text, reference) for text, reference in zip(texts, references, strict=True)])
    assert value(rows, task, "RecSysLLM", "ROUGE-1") == pytest.approx(f1)
    invalid = sum(n % 4 == 2 for n in range(len(metas))) / len(metas)
    assert value(rows, task, "RecSysLLM", "invalid_rate") == pytest.approx(invalid)
    metrics = {metric for family, method, metric in rows if (family, method) == (task, "RecSysLLM")}
    assert metrics == {"BLEU-2", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L", "invalid_rate"}


def test_texts_word_for_word_score_a_hundred(run: Run[RecSysLLMConfig]) -> None:
    metas = metas_of(run, "explanation")
    found = measured(run, "explanation", [{**meta, "text": meta["answer"] + " "} for meta in metas])
    names = ("BLEU-2", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L")
    assert [found["x", name] for name in names] == pytest.approx([100] * 5) and found[
        "x", "invalid_rate"
    ] == 0


# --- what stands beside -------------------------------------------------------------------------------


def test_methods_prompts_and_families(run: Run[RecSysLLMConfig]) -> None:
    """A method is asked about its own families only; every one has a row by each prompt."""
    methods = {task: {method for family, method, _ in results(run) if family == task} for task in FAMILIES}
    both, base = {"RecSysLLM", "RecSysLLM *"}, {"Base"}
    free = {f"{name}, free" for name in both}
    alone = {"sequential task only", "sequential task only *"}
    assert methods["explanation"] == methods["review"] == both
    assert methods["rating"] == both | base and methods["direct"] == both | base | free
    assert methods["sequential"] == both | base | free | alone | {f"{name}, free" for name in alone}


def test_rows_say_what_they_are_of(run: Run[RecSysLLMConfig]) -> None:
    rows = results(run)
    assert {row["dataset"] for row in rows.values()} == {"shop"} and {r["seed"] for r in rows.values()} == {3}
    backbones = {task: {row["backbone"] for (t, _, _), row in rows.items() if t == task} for task in FAMILIES}
    assert backbones == {
        "rating": {"deepfm"},
        "sequential": {"sasrec"},
        "direct": {"mf"},
        "explanation": {""},
        "review": {""},
    }
    assert rows["sequential", "Base", "H@1"]["protocol"] == f"full catalogue, {NUM_ITEMS} items, 7 beams"
    assert rows["direct", "Base", "H@1"]["protocol"] == "1 target among 6 items that the user never touched"


def test_values_of_users(run: Run[RecSysLLMConfig]) -> None:
    """One a question in its user's name, with the number of that user's training rows."""
    found = pq.read_table(run.folder / "per_user.parquet").to_pylist()
    rows = results(run)
    hits = [
        row for row in found if (row["task"], row["method"], row["metric"]) == ("direct", "RecSysLLM", "H@3")
    ]
    assert [row["user"] for row in hits] == [meta["user"] for meta in metas_of(run, "direct")]
    assert [row["value"] for row in hits] == [float(n % 4 != 3) for n in range(len(hits))]
    assert all(row["num_interactions"] == len(SHOP[row["user"]]) - 2 for row in hits)
    errors = [row["value"] for row in found if (row["method"], row["metric"]) == ("RecSysLLM", "SE")]
    assert math.sqrt(np.mean(errors)) == pytest.approx(value(rows, "rating", "RecSysLLM", "RMSE"))
    assert not any(row["metric"] in ("RMSE", "BLEU-4", "invalid_rate") for row in found)


@torch.no_grad()
def test_recommenders_rank_and_rate_the_same_questions(run: Run[RecSysLLMConfig]) -> None:
    """Among the candidates, or all items, from all rows before the test row."""
    rows = results(run)
    for task, scored in (("direct", True), ("sequential", False)):
        model, metas = load_backbone(run.path(f"backbones/{task}")).eval(), metas_of(run, task)  # type: ignore[arg-type]
        ranks = ranks_of(run, task, metas, among=scored)
        for meta, rank in zip(metas, ranks.tolist(), strict=True):
            before = [int(row["item_key"][1:]) for row in SHOP[meta["user"]][:-1]]
            padded = [*[NUM_ITEMS] * model.history_length, *before][len(before) :]
            scores = model.score(torch.tensor([meta["user"]]), torch.tensor([padded]))[0].tolist()
            listed = meta["items"] if scored else range(NUM_ITEMS)
            assert rank == sum(scores[item] >= scores[meta["answer"]] for item in listed)
        assert value(rows, task, "Base", "H@1") == pytest.approx(np.mean(ranks == 1))
    metas = metas_of(run, "rating")
    users, items = np.array([(meta["user"], meta["items"][0]) for meta in metas]).T
    predicted = predict_ratings(load_backbone(run.path("backbones/rating")), users, items)
    errors = predicted - np.array([meta["answer"] for meta in metas])
    assert value(rows, "rating", "Base", "MAE") == pytest.approx(np.abs(errors).mean(), rel=1e-5)


@pytest.mark.parametrize("damage", ["flip", "lost", "twice"])
def test_damaged_answers_are_one_sentence(run: Run[RecSysLLMConfig], damage: str, tmp_path: Path) -> None:
    other = Run(run.config, tmp_path, tmp_path / "cache")
    folder = answers_folder(other, METHODS["recsysllm"], "rating", "seen")
    shutil.copytree(answers_folder(run, METHODS["recsysllm"], "rating", "seen"), folder)
    path = folder / "chunk-00001.jsonl"
    lines = path.read_text().splitlines()
    if damage == "flip":
        path.write_text(path.read_text().replace("user", "uses"))
    else:
        path.write_text("\n".join(lines[1:] if damage == "lost" else [*lines[:-1], lines[0]]) + "\n")
        write_manifest(folder, kind="answers", num_answers=len(metas_of(run, "rating")))
    told = "checksum differs" if damage == "flip" else "answers are missing: run again from --from"
    with pytest.raises(UserError, match=told):
        read_answers(other, METHODS["recsysllm"], "rating", "seen")
