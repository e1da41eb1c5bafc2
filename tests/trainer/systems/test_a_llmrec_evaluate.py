"""From answers to results: metrics of hand-written lines, damaged and foreign answers, the times.

Shapes: N users asked, C candidates of a user.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from test_a_llmrec_asked import NUM_ITEMS, pairs, rank_by_hand, small_run

from recloom.data_shards.artifacts import atomic_write_json, write_manifest
from recloom.data_shards.candidates import NO_ITEM
from recloom.data_shards.errors import UserError
from recloom.trainer.collaborative import evaluate, mf
from recloom.trainer.collaborative.base import Backbone
from recloom.trainer.collaborative.data import TopKData, pad_histories
from recloom.trainer.collaborative.registry import save_backbone
from recloom.trainer.config_io import dump_config
from recloom.trainer.stages import Run
from recloom.trainer.systems.a_llmrec import rank
from recloom.trainer.systems.a_llmrec.answerers import load_llm
from recloom.trainer.systems.a_llmrec.asked import Asked
from recloom.trainer.systems.a_llmrec.backbones import candidate_scores
from recloom.trainer.systems.a_llmrec.evaluate import check_lines, line_scores, method_times, run_evaluate
from recloom.trainer.systems.a_llmrec.methods import METHODS, SBERT, Method, asked_methods
from recloom.trainer.systems.a_llmrec.prepare import Task, load_task, models_run
from recloom.trainer.systems.a_llmrec.rank import Line, all_asked, answers_path, ask, keep_whole_lines
from recloom.trainer.systems.a_llmrec.settings import ALLMRecConfig
from recloom.trainer.tree_attention import TREE

LLM_ONLY = METHODS["llm_only"][0]
SCENARIO = {"negatives": 9, "users": 20, "group_users": 6, "seed": 3}


def make_run(folder: Path, **changes: Any) -> Run[ALLMRecConfig]:
    """A run with a random backbone, ready to be asked and evaluated."""
    given = {"scenario": SCENARIO, "methods": ["llm_only"], "evaluate": {"ks": [1, 5]}}
    run = small_run(folder, **(given | {"backbones": {"direct": {"model": "mf"}}} | changes))
    save_backbone(random_backbone(load_task(run)), mf.Settings(embedding=4), run.path("backbone"))
    return run


def random_backbone(task: Task) -> Backbone:
    data = TopKData.from_split(task.scenario.splits.topk, task.tables.num_users, task.tables.num_items)
    torch.manual_seed(2)
    return mf.MF.build(data, mf.Settings(embedding=4)).eval()


def hand_lines(asked: Asked, seed: int, seconds: float | None = 0.5) -> list[Line]:
    """Log-probabilities of few different values, and a greedy choice of its own."""
    rng = np.random.default_rng(seed)
    lines = []
    for n, user in enumerate(asked.rows.user_N.tolist()):
        items = asked.candidates(n)
        logprobs = (-rng.integers(1, 6, len(items)) / 2).tolist()
        lines.append(Line(user, items, logprobs, int(rng.integers(len(items))), seconds))
    return lines


def write_lines(path: Path, lines: list[Line]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(line)) + "\n" for line in lines))


def line_rank(line: Line, target: int) -> float:
    return rank_by_hand(line.logprobs, line.items, target)


def metrics_by_hand(ranks: list[float]) -> dict[str, list[float]]:
    return {
        "H@1": [float(r <= 1) for r in ranks],
        "H@5": [float(r <= 5) for r in ranks],
        "N@5": [1 / math.log2(r + 1) if r <= 5 else 0.0 for r in ranks],
    }


def score(backbone: Backbone, task: Task, user: int) -> list[float]:
    """The whole catalogue's scores, of one user alone."""
    padded_BL = pad_histories([task.histories[user]], backbone.history_length, backbone.num_items)
    with torch.no_grad():
        return backbone.score(torch.tensor([user]), padded_BL)[0].tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run[ALLMRecConfig]:
    return make_run(tmp_path_factory.mktemp("run"), scenario=SCENARIO | {"full_catalogue": True}, seed=5)


@pytest.fixture(scope="module")
def task(run: Run[ALLMRecConfig]) -> Task:
    return load_task(run)


@pytest.fixture(scope="module")
def both_asked(run: Run[ALLMRecConfig], task: Task) -> list[Asked]:
    return all_asked(run, task)


@pytest.fixture(scope="module")
def evaluated(run: Run[ALLMRecConfig], both_asked: list[Asked]) -> Run[ALLMRecConfig]:
    for seed, asked in enumerate(both_asked):
        write_lines(answers_path(run, LLM_ONLY, asked), hand_lines(asked, seed))
    run_evaluate(run)
    return run


def rows_of(run: Run[ALLMRecConfig]) -> list[dict[str, Any]]:
    return [json.loads(text) for text in run.path("results.jsonl").read_text().splitlines()]


def values(run: Run[ALLMRecConfig], method: str) -> dict[tuple[str, str], tuple[float, int]]:
    """(value, users) by scenario and metric."""
    rows = [row for row in rows_of(run) if row["method"] == method]
    found = {(row["scenario"], row["metric"]): (row["value"], row["users"]) for row in rows}
    assert len(found) == len(rows), "no row is there twice"
    return found


def expected(asked: Asked, by_metric: dict[str, list[float]]) -> dict[tuple[str, str], tuple[Any, int]]:
    return {
        (name, metric): (pytest.approx(np.mean(np.array(per_user)[mask_N])), int(mask_N.sum()))
        for name, mask_N in asked.groups.items()
        for metric, per_user in by_metric.items()
    }


def test_results_of_hand_written_answers(evaluated: Run[ALLMRecConfig], both_asked: list[Asked]) -> None:
    want: dict[tuple[str, str], tuple[Any, int]] = {}
    for seed, asked in enumerate(both_asked):
        lines, targets = hand_lines(asked, seed), asked.rows.item_N.tolist()
        found = metrics_by_hand([line_rank(*pair) for pair in zip(lines, targets, strict=True)])
        found["greedy H@1"] = [
            float(line.items[line.greedy] == target) for line, target in zip(lines, targets, strict=True)
        ]
        want |= expected(asked, found)
    assert values(evaluated, "LLM-only") == want
    assert {name for name, _ in want} == {"overall", "warm", "cold", "overall_full"}
    assert want["overall", "H@1"][1] == want["overall_full", "H@1"][1] == 20
    assert 6 <= want["cold", "H@1"][1] < 20


def test_the_backbone_alone(evaluated: Run[ALLMRecConfig], task: Task, both_asked: list[Asked]) -> None:
    backbone, want = random_backbone(task), {}
    sampled, whole = both_asked
    ranks = []
    for n, (user, target) in enumerate(pairs(sampled.rows)):
        scores_I, items = score(backbone, task, user), sampled.candidates(n)
        ranks.append(rank_by_hand([scores_I[item] for item in items], items, target))
    want |= expected(sampled, metrics_by_hand(ranks))
    ranks = []
    for user, target in pairs(whole.rows):
        scores_I, seen = score(backbone, task, user), set(task.histories[user].tolist())
        items = [item for item in range(NUM_ITEMS) if item not in seen]
        ranks.append(rank_by_hand([scores_I[item] for item in items], items, target))
    want |= expected(whole, metrics_by_hand(ranks))
    assert values(evaluated, "Base") == want
    ceiling = expected(whole, {"H@10": [float(r <= 10) for r in ranks]})
    assert values(evaluated, "Ceiling") == ceiling
    assert 0 < np.mean([r <= 10 for r in ranks]) < 1


def test_what_a_row_says_of_itself(evaluated: Run[ALLMRecConfig]) -> None:
    rows = rows_of(evaluated)
    same = {"dataset": "small", "split": "test", "task": "direct", "backbone": "mf", "seed": 5}
    assert all(same.items() <= row.items() for row in rows)
    protocols = {row["scenario"]: row["protocol"] for row in rows}
    assert protocols["overall"] == protocols["cold"] == "1 + 9 candidates, drawn with seed 3"
    assert protocols["overall_full"] == "full catalogue, 40 items, LLM re-ranks top 10"


def test_one_row_a_user(evaluated: Run[ALLMRecConfig], task: Task) -> None:
    per_user = pq.read_table(evaluated.path("per_user.parquet")).to_pylist()
    for row in per_user:
        assert row["num_interactions"] == len(task.train_sequences[row["user"]])
    for row in rows_of(evaluated):
        same = ("task", "scenario", "backbone", "method", "metric")
        own = [user for user in per_user if all(user[name] == row[name] for name in same)]
        assert len({user["user"] for user in own}) == len(own) == row["users"]
        assert np.mean([user["value"] for user in own]) == pytest.approx(row["value"])


def test_a_group_without_users_has_no_row(tmp_path: Path) -> None:
    run = make_run(tmp_path, scenario={"negatives": 9, "users": 1})
    (asked,) = all_asked(run, load_task(run))
    write_lines(answers_path(run, LLM_ONLY, asked), hand_lines(asked, 0))
    run_evaluate(run)
    filled = {name for name, mask_N in asked.groups.items() if mask_N.any()}
    assert {row["scenario"] for row in rows_of(run)} == filled != {"overall", "warm", "cold"}


def test_scores_of_candidates(task: Task, both_asked: list[Asked], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, backbone = both_asked[0], random_backbone(task)
    per_user = backbone.num_items + backbone.history_length * backbone.settings.embedding
    monkeypatch.setattr(evaluate, "SCORES_PER_CHUNK", 7 * per_user)
    items_NC = asked.items_NC.copy()
    items_NC[3, 4:] = NO_ITEM
    found_NC = candidate_scores(backbone, asked.rows.user_N, asked.histories(task), items_NC)
    for n, user in enumerate(asked.rows.user_N.tolist()):
        scores_I = score(backbone, task, user)
        want = [scores_I[item] if item != NO_ITEM else -np.inf for item in items_NC[n].tolist()]
        np.testing.assert_allclose(found_NC[n], want, rtol=1e-5)


# ---- answers that do not belong here


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:-1],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [replace(lines[0], user=999), *lines[1:]],
        lambda lines: [replace(lines[0], items=lines[0].items[::-1]), *lines[1:]],
        lambda lines: [replace(lines[0], items=lines[0].items[:-1]), *lines[1:]],
    ],
)
def test_foreign_answers_are_refused(both_asked: list[Asked], change: Any) -> None:
    lines = hand_lines(both_asked[0], 0)
    check_lines(lines, both_asked[0])
    with pytest.raises(UserError, match=r"rank: its answers are about other users or candidates: run it"):
        check_lines(change(lines), both_asked[0])


def test_a_shorter_list_is_filled_up(both_asked: list[Asked]) -> None:
    asked = both_asked[0]
    lines = hand_lines(asked, 0)
    scores_NC = line_scores(lines, asked)
    assert scores_NC.shape == asked.items_NC.shape
    for line, scores_C, items_C in zip(lines, scores_NC, asked.items_NC, strict=True):
        assert scores_C.tolist()[: len(line.items)] == line.logprobs
        assert (items_C[len(line.items) :] == NO_ITEM).all() and (
            scores_C[len(line.items) :] == -np.inf
        ).all()


# ---- files of answers

LINE = st.builds(
    Line,
    st.integers(0, 10**6),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=4),
    st.lists(st.floats(-1e3, 0), min_size=1, max_size=4),
    st.integers(0, 3),
    st.none() | st.floats(0, 100),
)


@settings(max_examples=150, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, max_size=4), data=st.data())
def test_a_file_cut_anywhere_keeps_its_whole_lines(
    tmp_path: Path, lines: list[Line], data: st.DataObject
) -> None:
    path = tmp_path / "rank" / "x.jsonl"
    write_lines(path, lines)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = keep_whole_lines(path)
    assert kept == lines[: whole[:cut].count(b"\n")]
    left = path.read_bytes()
    assert left == b"".join(whole.splitlines(keepends=True)[: len(kept)])
    assert keep_whole_lines(path) == kept and path.read_bytes() == left


def test_a_file_that_is_not_there_is_an_empty_one(tmp_path: Path) -> None:
    assert keep_whole_lines(tmp_path / "rank" / "x.jsonl") == [] and (tmp_path / "rank").is_dir()


def test_asking_goes_on_where_it_was_cut_off(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are those of one go; what is there is not asked again, and all done loads no model."""
    small = {"negatives": 3, "users": 5}
    run = small_run(tmp_path, scenario=small, model={"path": str(tiny_llama), "dtype": "float32"})
    task = load_task(run)
    (asked,) = all_asked(run, task)
    llm = load_llm(run, TREE)
    first = ask(run, task, LLM_ONLY, asked, lambda: llm)
    assert [(line.user, line.items) for line in first] == [
        (user, asked.candidates(n)) for n, user in enumerate(asked.rows.user_N.tolist())
    ]
    assert all(line.seconds is not None and line.seconds > 0 for line in first)
    path = answers_path(run, LLM_ONLY, asked)
    whole = path.read_text().splitlines(keepends=True)
    assert rank.read_lines(path) == first
    path.write_text("".join(whole[:2]) + whole[2][:20])
    again = ask(run, task, LLM_ONLY, asked, lambda: llm)
    assert again[:2] == first[:2] and rank.read_lines(path) == again
    for one, other in zip(first, again, strict=True):
        assert (one.user, one.items, one.greedy) == (other.user, other.items, other.greedy)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)

    def no_model() -> Any:
        raise AssertionError("nothing is left to ask")

    assert ask(run, task, LLM_ONLY, asked, no_model) == again


# ---- times


def trained_run(folder: Path, name: str) -> Run[ALLMRecConfig]:
    """A run whose method was trained for three steps behind a stage align of 7 seconds."""
    run = make_run(folder, methods=["llm_only", "tallrec", "a_llmrec"])
    rows: list[dict[str, float]] = [{"step": n, "loss": 1.0, "seconds": 2.0 * n} for n in (1, 2, 3)]
    rows.append({"step": 3, "validation_loss": 0.5})
    model = run.path(f"tune/{name}/model")
    model.mkdir(parents=True)
    (model.parent / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(model, steps=3)
    atomic_write_json(run.path("stages/align.json"), {"seconds": 7.0})
    return run


def timed(run: Run[ALLMRecConfig], method: Method, seconds: list[float | None]) -> dict[str, Any]:
    asked = all_asked(run, load_task(run))[0]
    lines = hand_lines(asked, 0)
    told = [replace(line, seconds=seconds[n % len(seconds)]) for n, line in enumerate(lines)]
    write_lines(answers_path(run, method, asked), told)
    return method_times(run, method, asked)


def test_times(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "a", "a_llmrec")
    count = len(all_asked(run, load_task(run))[0].rows)
    mean = sum([1.0, 3.0][n % 2] for n in range(count)) / count
    assert timed(run, LLM_ONLY, [1.0, 3.0]) == {"question_seconds": pytest.approx(mean)}
    trained = {"training_seconds": 12.0, "steps": 3, "alignment_seconds": 7.0}
    for method in (METHODS["a_llmrec"][0], SBERT):
        assert timed(run, method, [2.0]) == {"question_seconds": 2.0, **trained}
    assert timed(run, SBERT, [2.0, None]) == trained, "vLLM tells no time of one question"
    other = trained_run(tmp_path / "b", "tallrec")
    assert timed(other, METHODS["tallrec"][0], [None]) == {"training_seconds": 12.0, "steps": 3}


def cross_domain_run(folder: Path, trained: Path) -> Run[ALLMRecConfig]:
    scenario = {"name": "cross_domain", "trained": str(trained), "negatives": 9}
    return small_run(folder, scenario=scenario, methods=["llm_only", "a_llmrec"])


def test_another_runs_models_answer(tmp_path: Path) -> None:
    """Their training is not this run's; the backbone and the joint embeddings know none of these items."""
    source = trained_run(tmp_path / "source", "a_llmrec")
    run = cross_domain_run(tmp_path / "here", source.folder)
    (source.folder / "config.yaml").write_text(dump_config(source.config))
    with pytest.raises(UserError, match="no finished run of a_llmrec: finish it"):
        models_run(run)
    atomic_write_json(source.path("stages/rank.json"), {})
    assert models_run(run).folder == source.folder and models_run(source) is source
    assert [method.name for method in asked_methods(run.config)] == ["LLM-only", "A-LLMRec (SBERT)"]
    assert timed(run, SBERT, [2.0]) == {"question_seconds": 2.0}
    for method in asked_methods(run.config):
        timed(run, method, [2.0])
    run_evaluate(run)
    assert {row["method"] for row in rows_of(run)} == {"LLM-only", "A-LLMRec (SBERT)"}
    assert json.loads(run.path("times.json").read_text()) == {
        name: {"question_seconds": 2.0} for name in ("LLM-only", "A-LLMRec (SBERT)")
    }
