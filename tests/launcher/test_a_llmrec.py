"""A-LLMRec by the commands a user types: all methods, ranks, kills, engines, another data set, damage."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from small_a_llmrec import WORDS, small_config, write_attentive_llama, write_films
from small_recipe import write_config
from test_run import RECLOOM, recloom
from test_train import ranks_of, start, wait_for
from tiny_encoder import write_tiny_encoder

from recloom.data_shards.shards import ShardReader
from recloom.launcher.cli import main

STAGES = (
    "prepare",
    "backbone",
    "align",
    "prompts_soft",
    "prompts_text",
    "project_mlp_llm",
    "project_a_llmrec",
    "lora",
    "rank",
    "genres",
    "evaluate",
    "report",
)
ASKED = {"LLM-only", "TALLRec", "MLP-LLM", "A-LLMRec", "A-LLMRec (SBERT)"}
KEYS = ("llm_only", "a_llmrec", "a_llmrec_sbert")
PROJECTION = "tune/a_llmrec/model/projection.safetensors"
JOINT = "align/joint.safetensors"
USER_STATES = "prompts/soft/states/user_states.safetensors"
ADAPTER = "tune/tallrec/model/adapter_model.safetensors"

Make = Callable[..., Path]
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def make(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes FOLDER/config.yaml, the small config with blocks of one's own, for a run in FOLDER/run."""
    llm = write_attentive_llama(tiny_llama, tmp_path_factory.mktemp("llm"))
    encoder = write_tiny_encoder(tmp_path_factory.mktemp("encoder"), WORDS)

    def write(folder: Path, **blocks: Any) -> Path:
        config = small_config(folder / "run", llm, encoder, **blocks)
        return write_config(folder / "config.yaml", config)

    return write


@pytest.fixture(scope="module")
def finished(make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed run of every method on two ranks: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    return folder / "run", ended(recloom("run", str(make(folder))))


ONE_RANK: dict[str, Any] = {
    "methods": ["llm_only", "a_llmrec"],
    "genres": None,
    "scenario": {"full_catalogue": False},
    "parallel": {"cpu_ranks": 1},
}


@pytest.fixture(scope="module")
def one_rank(make: Make, repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that shares nothing with the other: trained by `deepspeed` on one rank, then finished."""
    folder = tmp_path_factory.mktemp("one_rank")
    config = make(folder, **ONE_RANK)
    assert "on 1 ranks" in launched(repo_root, config, folder / "log.txt")
    ended(typed("run", str(config)))
    return folder / "run"


def typed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The `recloom` command in this process, which has imported everything already."""
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        code = main(list(arguments))
    return subprocess.CompletedProcess(["recloom", *arguments], code, printed.getvalue(), errors.getvalue())


def ended(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def launched(repo_root: Path, config: Path, log: Path) -> str:
    """What a launch of the training stages printed, to its good end."""
    assert start(repo_root, config, log).wait(timeout=900) == 0, log.read_text()[-4000:]
    return log.read_text()


def json_lines(path: Path) -> Lines:
    """The whole lines of a file that may be written to just now."""
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def losses(run: Path, name: str = "a_llmrec") -> np.ndarray:
    """Training and validation losses of a trained method, in order."""
    rows = json_lines(run / f"tune/{name}/metrics.jsonl")
    return np.array([row.get("loss", row.get("validation_loss")) for row in rows])


def states_of(printed: str) -> dict[str, str]:
    """run or skip, by stage, of a dry run."""
    return {name: state for state, name in re.findall(r"^(run|skip) +\[\d+\] (\w+)", printed, re.MULTILINE)}


def copied(run: Path, folder: Path, forgotten: tuple[str, ...] = ()) -> Path:
    """A copy of a run in `folder/run`, some stages of which are not done."""
    shutil.copytree(run, folder / "run")
    for name in forgotten:
        for path in (folder / "run/stages").glob(f"{name}.*"):
            path.unlink()
    return folder / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def killed_when(config: Path, log: Path, condition: Callable[[], bool], *options: str) -> None:
    """Start `recloom run` and kill it by SIGKILL as soon as the condition holds."""
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [RECLOOM, "run", str(config), *options], stdout=file, stderr=subprocess.STDOUT
        )
    wait_for(process, condition, log)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_run_ends_with_every_method_in_every_scenario(finished: tuple[Path, str]) -> None:
    run, printed = finished
    assert [name for name in STAGES if (run / f"stages/{name}.json").is_file()] == list(STAGES)
    rows = json_lines(run / "results.jsonl")
    for scenario in ("overall", "warm", "cold", "overall_full"):
        found = {(row["method"], row["metric"]) for row in rows if row["scenario"] == scenario}
        wanted = {(method, k) for method in ASKED | {"Base"} for k in ("H@1", "H@3", "N@3")}
        wanted |= {(method, "greedy H@1") for method in ASKED}
        assert found == wanted | ({("Ceiling", "H@6")} if scenario == "overall_full" else set())
    users = {row["scenario"]: row["users"] for row in rows}
    assert users["overall"] == users["overall_full"] == 20 and min(users["warm"], users["cold"]) >= 3
    assert all(0 <= row["value"] <= 1 and row["seed"] == 5 for row in rows)
    page = (run / "report/index.html").read_text()
    assert all(method in page for method in ASKED) and "A-LLMRec" in printed


def test_the_metrics_are_those_of_the_answers(finished: tuple[Path, str]) -> None:
    """H@1 of the table, counted anew from the log-probabilities and each user's last item."""
    run, _ = finished
    for key, method in (("llm_only", "LLM-only"), ("a_llmrec", "A-LLMRec")):
        hits = pq.read_table(run / "per_user.parquet").to_pylist()
        value = {
            row["user"]: row["value"]
            for row in hits
            if (row["method"], row["scenario"], row["metric"]) == (method, "overall", "H@1")
        }
        best = {
            line["user"]: line["items"][int(np.argmax(line["logprobs"]))]
            for line in json_lines(run / f"rank/{key}.jsonl")
        }
        targets = last_items(run)
        assert value == {user: float(best[user] == targets[user]) for user in value} and len(value) == 20


def last_items(run: Path) -> dict[int, int]:
    """Each user's last item in time; where times are equal, the later row."""
    rows = pq.read_table(run / "data/tables/interactions.parquet").to_pylist()
    return {row["user"]: row["item"] for row in sorted(rows, key=lambda row: row["timestamp"])}


def test_methods_answer_differently_and_with_times(finished: tuple[Path, str]) -> None:
    """What a method is given reaches the LLM: no two have the same log-probabilities."""
    run, _ = finished
    keys = (*KEYS, "tallrec", "mlp_llm")
    first = [json_lines(run / f"rank/{key}.jsonl")[0] for key in keys]
    assert all(line["items"] == first[0]["items"] for line in first)
    scores = np.array([line["logprobs"] for line in first])
    gaps = np.abs(scores[:, None] - scores[None]).max(axis=2) + np.eye(len(keys))
    assert gaps.min() > 0.05, gaps
    times = json.loads((run / "times.json").read_text())
    trained = {"question_seconds", "training_seconds", "steps"}
    assert set(times) == ASKED and set(times["LLM-only"]) == {"question_seconds"}
    assert set(times["TALLRec"]) == set(times["MLP-LLM"]) == trained
    assert set(times["A-LLMRec"]) == trained | {"alignment_seconds"} and times["A-LLMRec"]["steps"] == 10


def test_genres_are_free_text_of_both(finished: tuple[Path, str]) -> None:
    rows = json_lines(finished[0] / "genres.jsonl")
    assert [row["method"] for row in rows] == ["LLM-only"] * 2 + ["A-LLMRec"] * 2
    alone, joint = rows[:2], rows[2:]
    assert [row["user"] for row in alone] == [row["user"] for row in joint]
    for one, other in zip(alone, joint, strict=True):
        assert one["answer"] != other["answer"] and one["answer"] and other["answer"]
        assert "<user " in other["prompt"] and "<history " in other["prompt"] and "<" not in one["prompt"]
        assert "movies" in one["prompt"] and "watched" in one["prompt"]


def test_second_run_skips_every_stage(finished: tuple[Path, str]) -> None:
    run, _ = finished
    printed = ended(typed("run", str(run.parent / "config.yaml")))
    assert printed.count("(finished, skipped)") == len(STAGES)


def test_changed_cutoffs_run_only_evaluate_and_report(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, options = copied(finished[0], tmp_path), ("--evaluate.ks", "[2]", "--run_dir", str(tmp_path / "run"))
    config = str(finished[0].parent / "config.yaml")
    again = {"evaluate", "report"}
    planned = states_of(ended(typed("run", config, *options, "--dry-run")))
    assert set(planned) == set(STAGES) and {name for name in planned if planned[name] == "run"} == again
    assert contents(run) == contents(finished[0]), "a dry run writes nothing"
    printed = ended(typed("run", config, *options))
    assert printed.count("(finished, skipped)") == len(STAGES) - 2
    metrics = {row["metric"] for row in json_lines(run / "results.jsonl") if row["method"] == "A-LLMRec"}
    assert metrics == {"H@2", "N@2", "greedy H@1"}


def test_fewer_methods_train_nothing_again(finished: tuple[Path, str]) -> None:
    config = str(finished[0].parent / "config.yaml")
    planned = states_of(
        ended(typed("run", config, "--dry-run", "--methods", "[tallrec, a_llmrec]", "--genres", "null"))
    )
    assert "project_mlp_llm" not in planned and planned["project_a_llmrec"] == planned["lora"] == "skip"
    assert {name for name in planned if planned[name] == "run"} == {"rank", "evaluate", "report"}


def test_a_method_more_trains_nothing_again(one_rank: Path) -> None:
    """Its corpus of text is made beside the one with vectors, which stays."""
    config = str(one_rank.parent / "config.yaml")
    planned = states_of(
        ended(typed("run", config, "--dry-run", "--methods", "[llm_only, a_llmrec, tallrec]"))
    )
    again = {"prompts_text", "lora", "rank", "evaluate", "report"}
    assert {name for name in planned if planned[name] == "run"} == again


def test_one_rank_learns_what_two_do(finished: tuple[Path, str], one_rank: Path) -> None:
    """The same questions and joint embeddings, byte by byte; the same losses, nearly the same weights."""
    two_ranks, _ = finished
    assert contents(one_rank / "prompts/soft") == contents(two_ranks / "prompts/soft")
    assert contents(one_rank / "align") == contents(two_ranks / "align")
    reader = ShardReader(one_rank / "prompts/soft/train")
    assert len(reader.lengths_N) == 40
    assert len(losses(one_rank)) == 10 + 3
    np.testing.assert_allclose(losses(one_rank), losses(two_ranks), atol=1e-5, rtol=0)
    one, two = load_file(one_rank / PROJECTION), load_file(two_ranks / PROJECTION)
    assert set(one) == set(two) and any(name.startswith("user.") for name in one)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-4, rtol=0, err_msg=name)


def test_killed_rank_and_resume_are_bit_equal(
    finished: tuple[Path, str], make: Make, repo_root: Path, tmp_path: Path
) -> None:
    """The launch ends badly; the next goes on from the checkpoint and ends as the undisturbed run did."""
    run, config = copied(finished[0], tmp_path, ("project_a_llmrec",)), make(tmp_path)
    shutil.rmtree(run / "tune/a_llmrec")
    process = start(repo_root, config, tmp_path / "first.txt")
    latest = run / "tune/a_llmrec/checkpoints/latest.json"
    wait_for(process, latest.is_file, tmp_path / "first.txt")
    ranks_of(process)[-1].send_signal(signal.SIGKILL)
    assert process.wait(timeout=300) != 0, "a killed rank must not look like success"
    assert not (run / "stages/project_a_llmrec.json").exists() and latest.is_file()

    log = launched(repo_root, config, tmp_path / "second.txt")
    assert "project_mlp_llm: finished, skipped" in log and "resuming after step" in log
    assert losses(run).tolist() == losses(finished[0]).tolist()
    assert (run / PROJECTION).read_bytes() == (finished[0] / PROJECTION).read_bytes()


def test_killed_align_goes_on_from_its_checkpoint(
    finished: tuple[Path, str], make: Make, tmp_path: Path
) -> None:
    run, config = copied(finished[0], tmp_path, ("align",)), make(tmp_path)
    shutil.rmtree(run / "align")
    killed_when(config, tmp_path / "first.txt", (run / "align/checkpoint.pt").is_file, "--until", "align")
    assert not (run / "stages/align.json").exists() and len(json_lines(run / "align/metrics.jsonl")) >= 4
    mark_first_line(run / "align/metrics.jsonl")
    ended(recloom("run", str(config), "--until", "align"))
    first, *others = json_lines(run / "align/metrics.jsonl")
    expected = json_lines(finished[0] / "align/metrics.jsonl")
    assert first.pop("mark") and [first, *others] == expected, "the steps before the kill are not done again"
    one, two = contents(run / "align"), contents(finished[0] / "align")
    marked = {"metrics.jsonl", "manifest.json"}
    assert set(one) == set(two) and {name for name in one if one[name] != two[name]} == marked


def mark_first_line(path: Path) -> None:
    """Make the first line of a log known again."""
    first, _, others = path.read_text().partition("\n")
    path.write_text(json.dumps(json.loads(first) | {"mark": True}) + "\n" + others)


def test_killed_rank_stage_asks_each_question_once(
    finished: tuple[Path, str], make: Make, tmp_path: Path
) -> None:
    run, config = copied(finished[0], tmp_path, ("rank",)), make(tmp_path)
    shutil.rmtree(run / "rank")
    path = run / "rank/mlp_llm.jsonl"
    killed_when(config, tmp_path / "first.txt", lambda: len(json_lines(path)) >= 16, "--until", "rank")
    assert not (run / "stages/rank.json").exists()
    with open(path, "a") as file:
        file.write('{"user": 3, "ite')  # a line that was being written
    before = {name: json_lines(run / f"rank/{name}.jsonl") for name in ("llm_only", "mlp_llm")}
    ended(recloom("run", str(config), "--until", "rank"))
    for name, lines in before.items():
        found = json_lines(run / f"rank/{name}.jsonl")
        assert found[: len(lines)] == lines, "with the seconds of the first asking"
    names = sorted(path.name for path in (finished[0] / "rank").iterdir())
    assert names == sorted(path.name for path in (run / "rank").iterdir()) and len(names) == 10
    for name in names:
        assert untimed(run / "rank" / name) == untimed(finished[0] / "rank" / name)


def untimed(path: Path) -> Lines:
    return [{**line, "seconds": None} for line in json_lines(path)]


def test_vllm_ranks_as_hugging_face_does(one_rank: Path, make: Make, tmp_path: Path) -> None:
    run, config = copied(one_rank, tmp_path), make(tmp_path, **ONE_RANK)
    printed = ended(typed("run", str(config), "--rank.engine", "vllm", "--from", "rank"))
    assert printed.count("(finished, skipped)") == 5, "nothing is trained again"
    for key in KEYS:
        served, own = json_lines(run / f"rank/{key}.jsonl"), json_lines(one_rank / f"rank/{key}.jsonl")
        assert len(served) == len(own) >= 20
        for one, other in zip(served, own, strict=True):
            assert (one["user"], one["items"]) == (other["user"], other["items"]) and one["seconds"] is None
            assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-3)
            assert one["greedy"] == other["greedy"]
    assert (run / "results.jsonl").read_text() == (one_rank / "results.jsonl").read_text()
    assert "question_seconds" not in json.loads((run / "times.json").read_text())["A-LLMRec"]


def test_another_data_set_is_answered_by_the_finished_models(
    finished: tuple[Path, str], make: Make, tmp_path: Path
) -> None:
    """Cross-domain: text alone carries over, so A-LLMRec is its SBERT variant; nothing is learned."""
    config = make(tmp_path, **cross_domain(tmp_path, finished[0]))
    printed = ended(typed("run", str(config)))
    run = tmp_path / "run"
    stages = re.findall(r"^\[\d/\d\] (\w+):", printed, re.MULTILINE)
    assert stages == ["prepare", "rank", "genres", "evaluate", "report"]
    assert not any((run / name).exists() for name in ("backbone", "align", "prompts", "tune"))
    rows = json_lines(run / "results.jsonl")
    assert {row["method"] for row in rows} == {"LLM-only", "TALLRec", "A-LLMRec (SBERT)"}
    assert {(row["scenario"], row["dataset"], row["users"]) for row in rows} == {
        ("cross_domain", "Films", 20)
    }
    answers = {
        key: json_lines(run / f"rank/{key}.jsonl") for key in ("llm_only", "tallrec", "a_llmrec_sbert")
    }
    for text, soft in zip(answers["llm_only"], answers["a_llmrec_sbert"], strict=True):
        assert text["items"] == soft["items"] and len(text["items"]) == 6
        assert np.abs(np.subtract(text["logprobs"], soft["logprobs"])).max() > 0.05
    assert "<history " in json_lines(run / "genres.jsonl")[-1]["prompt"]


def cross_domain(folder: Path, trained: Path) -> dict[str, Any]:
    """Blocks that ask about films of our own, in files of `folder`."""
    scenario = {"name": "cross_domain", "trained": str(trained), "full_catalogue": False}
    methods = ["llm_only", "tallrec", "a_llmrec"]
    return {"data": write_films(folder), "methods": methods, "scenario": scenario, "genres": {"users": 1}}


def test_models_of_no_run_are_one_sentence(make: Make, tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    make(tmp_path / "unfinished")
    for folder in (tmp_path / "unfinished", tmp_path / "nowhere"):
        message = refused(typed("run", str(make(tmp_path, **cross_domain(tmp_path, folder)))))
        assert message.startswith(f"scenario.trained = '{folder}': no finished run of a_llmrec: finish it")
        assert not (tmp_path / "run").exists(), "nothing is written"


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a command that bad input ended."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


def test_few_shot_learns_from_its_users_alone(make: Make, tmp_path: Path) -> None:
    config = make(
        tmp_path,
        methods=["a_llmrec"],
        scenario={"name": "few_shot_64", "full_catalogue": False},
        align={"users": None},
        project={"users": None},
        genres=None,
    )
    ended(typed("run", str(config), "--until", "prompts_soft"))
    steps = json_lines(tmp_path / "run/align/metrics.jsonl")
    assert [row["step"] for row in steps] == [1, 2, 3, 4], "2 epochs of 64 sequences, 32 a step"
    reader = ShardReader(tmp_path / "run/prompts/soft/train")
    assert len(reader.lengths_N) == 64 and not (tmp_path / "run/prompts/text").exists()


def test_cold_users_are_asked_and_not_learned_from(make: Make, tmp_path: Path) -> None:
    scenario = {"name": "cold_users", "truncated_cold_users": 12, "full_catalogue": False}
    config = make(tmp_path, methods=["llm_only"], scenario=scenario, genres=None)
    printed = ended(typed("run", str(config)))
    assert "align" not in printed and "project" not in printed, "the LLM alone needs no training"
    rows = json_lines(tmp_path / "run/results.jsonl")
    assert {(row["scenario"], row["users"]) for row in rows} == {("cold_users", 12)}
    assert {row["method"] for row in rows} == {"Base", "LLM-only"}
    users = pq.read_table(tmp_path / "run/per_user.parquet").to_pylist()
    assert len({row["user"] for row in users}) == 12
    assert {row["num_interactions"] for row in users} == {0}, "of training"


@pytest.mark.parametrize("name", [PROJECTION, JOINT, ADAPTER, USER_STATES])
def test_a_flipped_byte_is_one_sentence(
    finished: tuple[Path, str], make: Make, tmp_path: Path, name: str
) -> None:
    run, config = (
        copied(finished[0], tmp_path),
        make(tmp_path, scenario={"users": 1, "full_catalogue": False}),
    )
    data = bytearray((run / name).read_bytes())
    data[-5] ^= 1
    (run / name).write_bytes(data)
    message = refused(typed("run", str(config)))
    assert str(run / name) in message and "the checksum differs from the manifest's" in message


@pytest.mark.slow
def test_the_real_sentence_encoder_is_trained(make: Make, tmp_path: Path) -> None:
    """MiniLM, the default, in stage 1."""
    config = make(
        tmp_path,
        methods=["a_llmrec"],
        item_text={"encoder": "all-minilm-l6-v2"},
        align={"users": 64, "epochs": 1},
    )
    ended(typed("run", str(config), "--until", "align"))
    joint = load_file(tmp_path / "run" / JOINT)
    assert joint["item_IE"].shape == joint["text_IE"].shape == (1682, 16)
    assert all(np.isfinite(vectors_IE).all() for vectors_IE in joint.values())
    assert len(np.unique(joint["text_IE"].round(6), axis=0)) > 1600, "titles are told apart"
    assert (tmp_path / "run/align/encoder/modules.json").is_file()
    assert len(json_lines(tmp_path / "run/align/metrics.jsonl")) == 2
