"""`recloom run`: killed once in every stage it ends with the results of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small_recipe import small_config, write_config

RECLOOM = str(Path(sys.executable).parent / "recloom")
STAGES = (
    "prepare",
    "backbone",
    "instructions",
    "tune",
    "augment",
    "backbone_again",
    "rank",
    "aggregate",
    "report",
)


def recloom(*arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RECLOOM, *arguments], capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder / "config.yaml", small_config(folder / "run", tiny_llama))
    done = recloom("run", str(config))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout


def test_run_ends_with_table_and_report(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    rows = [json.loads(line) for line in (folder / "run/results.jsonl").read_text().splitlines()]
    for task, metrics in (("direct", {"H@3", "N@3", "H@5", "N@5"}), ("rating", {"RMSE", "MAE"})):
        for method in ("Base", "IFT", "Llama4Rec"):
            found = {row["metric"] for row in rows if row["task"] == task and row["method"] == method}
            assert metrics <= found, (task, method)
    assert all(row["seed"] == 5 and row["users"] > 0 for row in rows)
    assert (folder / "run/report/index.html").is_file()
    assert "Llama4Rec" in printed and "report/index.html" in printed
    for name in ("config.yaml", "env.json", "log.txt", "per_user.parquet", "data/card.json"):
        assert (folder / "run" / name).is_file()


def test_second_run_skips_every_stage(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    done = recloom("run", str(folder / "config.yaml"))
    assert done.returncode == 0
    assert done.stdout.count("(finished, skipped)") == len(STAGES)


def test_changed_setting_runs_only_what_depends_on_it(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    done = recloom("run", str(folder / "config.yaml"), "--dry-run", "--evaluate.utility_c", "2.0")
    states = {line.split()[2]: line.split()[0] for line in done.stdout.splitlines()}
    assert {name for name, state in states.items() if state == "run"} == {"aggregate", "report"}


def wait_until_inside(process: subprocess.Popen[bytes], folder: Path, stage: str) -> None:
    """Return when `stage` has begun its work."""
    deadline = time.monotonic() + 600
    while not (folder / f"run/stages/{stage}.started").exists():
        assert process.poll() is None, f"the run ended before {stage} began"
        assert time.monotonic() < deadline, f"{stage} did not begin"
        time.sleep(0.02)


@pytest.mark.timeout(1500)
def test_killed_in_each_stage_ends_with_the_same_results(
    tiny_llama: Path, finished: tuple[Path, str], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", small_config(tmp_path / "run", tiny_llama))
    for position, stage in enumerate(STAGES):
        with open(tmp_path / f"{stage}.txt", "wb") as log:
            process = subprocess.Popen([RECLOOM, "run", str(config)], stdout=log, stderr=subprocess.STDOUT)
        wait_until_inside(process, tmp_path, stage)
        time.sleep(0.3 * (position % 3) + (8 if stage in ("tune", "rank") else 0.1))
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        gone, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, f"{stage}: orphans go on working: {[p.cmdline() for p in alive]}"
    done = recloom("run", str(config))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "run/results.jsonl").read_text() == (finished[0] / "run/results.jsonl").read_text()


def test_only_asks_for_what_is_missing(tiny_llama: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", small_config(tmp_path / "run", tiny_llama))
    done = recloom("run", str(config), "--only", "tune")
    assert done.returncode == 2
    assert "needs instructions, which is not finished" in done.stderr
    done = recloom("run", str(config), "--only", "tuna")
    assert done.returncode == 2 and "no such stage: choose one of prepare" in done.stderr


def test_two_runs_do_not_share_a_folder(tiny_llama: Path, tmp_path: Path) -> None:
    import fcntl

    config = write_config(tmp_path / "config.yaml", small_config(tmp_path / "run", tiny_llama))
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = recloom("run", str(config))
    assert done.returncode == 2 and "another run writes there" in done.stderr
    assert not (tmp_path / "run/config.yaml").exists(), "the other run's settings stay as they are"


@pytest.mark.slow
def test_other_recipes(tiny_llama: Path, tmp_path: Path) -> None:
    """Only ratings, read as text; an IFT model of its own and all users asked."""
    rating_only = small_config(tmp_path / "rating", tiny_llama)
    rating_only["backbones"] = {"rating": rating_only["backbones"]["rating"]}
    rating_only["rank"]["rating_rule"] = "integer"
    separate = small_config(tmp_path / "separate", tiny_llama, ift="separate", epochs=1)
    separate["rank"] |= {"reachable_only": False, "max_answer_tokens": 2, "ranking": "listwise"}
    separate["evaluate"] = {"ablation": False}
    separate["positive_rating"] = None
    for name, config in (("rating", rating_only), ("separate", separate)):
        done = recloom("run", str(write_config(tmp_path / f"{name}.yaml", config)))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert (tmp_path / name / "report/index.html").is_file()
    assert (tmp_path / "separate/tune/ift/model/config.json").is_file()


def test_seeds_share_a_tuned_model_and_augmentation_files(
    finished: tuple[Path, str], tiny_llama: Path, tmp_path: Path
) -> None:
    """`model.tuned`, `augment.reuse` and `seeds`: nothing is tuned, each seed has its own backbones."""
    first = str(finished[0] / "run")
    config = small_config(tmp_path / "run", tiny_llama)
    config["model"]["tuned"], config["augment"]["reuse"] = first, first
    config["backbones"] = {"direct": config["backbones"]["direct"]}
    config["rank"] |= {"ranking": "listwise", "max_answer_tokens": 3}
    config |= {"seeds": [5, 6], "evaluate": {"ablation": False}}
    path = str(write_config(tmp_path / "config.yaml", config))
    until = recloom("run", path, "--until", "backbone")
    assert until.returncode == 0 and not list(tmp_path.glob("run/seed_*/stages/augment.json"))
    done = recloom("run", path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not list(tmp_path.glob("run/seed_*/tune")) and "±" in done.stdout
    assert "Seeds: 5, 6" in done.stdout and "Table 2, ML-100K" in done.stdout
    own = (tmp_path / "run/seed_6/augment/direct.jsonl").read_text()
    assert own == (finished[0] / "run/augment/direct.jsonl").read_text()
    listed = recloom("ls", str(tmp_path)).stdout
    assert "run seed_5" in listed and "run seed_6" in listed and listed.count("finished") == 2
    assert (tmp_path / "run/report/index.html").is_file()


def test_a_launch_on_ranks_needs_one_seed_and_a_model_to_tune(tiny_llama: Path, tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", tiny_llama) | {"seeds": [5, 6]}
    command = [sys.executable, str(Path(__file__).parents[2] / "launcher/train.py"), "--config"]
    command.append(str(write_config(tmp_path / "config.yaml", config)))
    for further, sentence in (
        ([], f"--seed 5 --seeds [] --run_dir {tmp_path}/run/seed_5"),
        (["--model.tuned", "runs/x"], "uses finished models and trains none"),
    ):
        done = subprocess.run([*command, *further], capture_output=True, text=True)
        assert done.returncode == 2 and sentence in done.stderr
        assert not (tmp_path / "run").exists()


def test_ls_and_env(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    done = recloom("ls", str(folder))
    assert "9/9 stages" in done.stdout and "finished" in done.stdout
    environment = json.loads(recloom("env").stdout)
    assert environment["packages"]["torch"].startswith("2.13.0")
    assert environment["cpu_cores"] == len(os.sched_getaffinity(0))


def test_inspect_shows_samples_answers_and_records(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    run = folder / "run"
    sample = recloom("inspect", str(run / "instructions/llama4rec/train"), "--index", "3").stdout
    assert "Output:" in sample and "entities:" in sample
    assert (
        "all bytes as written"
        in recloom("inspect", str(run / "instructions/llama4rec/train"), "--verify").stdout
    )
    assert '"logprob"' in recloom("inspect", str(run / "bulk/augment")).stdout
    assert '"prompt"' in recloom("inspect", str(run / "augment/direct.jsonl")).stdout
    wrong = recloom("inspect", str(run / "augment/direct.jsonl"), "--index", "999")
    assert wrong.returncode == 2 and "choose 0 to" in wrong.stderr


BAD_TABLES = {
    "missing column": ("user,movie,rating\n1,2,3\n", "item"),
    "duplicate row": ("user,item,rating\n1,2,3\n1,2,4\n", "rows 1 and 2"),
    "non-numeric rating": ("user,item,rating\n1,2,good\n", "good"),
    "empty file": ("", "empty"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_csv_is_one_sentence_and_code_2(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    text, expected = BAD_TABLES[name]
    (tmp_path / "mine.csv").write_text(text)
    config = small_config(tmp_path / "run", tiny_llama)
    columns = {"user": "user", "item": "item", "rating": "rating"}
    config["data"] = {
        "source": "table",
        "name": "mine",
        "interactions": {"path": str(tmp_path / "mine.csv"), "columns": columns},
    }
    done = recloom("run", str(write_config(tmp_path / "config.yaml", config)))
    assert done.returncode == 2, done.stdout + done.stderr
    message = done.stderr.strip().splitlines()
    assert len(message) == 1 and "mine.csv" in message[0] and expected in message[0].lower(), done.stderr
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_three_mistakes_give_three_sentences(tiny_llama: Path, tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", tiny_llama, epocs=3, learning_rate="fast")
    config["backbones"]["direct"]["model"] = "lightgnc"
    done = recloom("run", str(write_config(tmp_path / "config.yaml", config)))
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 3, done.stderr
    assert any("'epochs'" in line for line in lines) and any("'lightgcn'" in line for line in lines)
    assert not (tmp_path / "run").exists()
