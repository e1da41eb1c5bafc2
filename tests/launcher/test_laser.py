"""Laser by the commands a user types: all methods, ranks, kills, transfer, other backbones, damage."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from small_a_llmrec import write_films
from small_laser import METHODS, NUM_ITEMS, NUM_USERS, small_config, write_shop
from small_recipe import write_config
from test_a_llmrec import contents, copied, ended, json_lines, launched, refused, states_of, typed
from test_run import recloom
from test_train import ranks_of, start, wait_for

from recloom.data_shards.shards import ShardReader

NAMES = {
    "Laser",
    "w/o MoE",
    "w/o M-Former",
    "w/o prefix",
    "w/o stage 1",
    "w/o stage 2",
    "average pooling",
    "hard [EOS]",
}
TRAINED = tuple(name for name in METHODS if name != "no_stage_2")
BITUNE = tuple(f"bitune_{number}_{name}" for name in TRAINED for number in (1, 2))
STAGES = (
    "prepare",
    "backbone",
    "baselines",
    "texts",
    "texts_test",
    *BITUNE,
    "rank",
    "export",
    "evaluate",
    "report",
)
WEIGHTS = "bituning.safetensors"
TIMES = {"seconds", "data_seconds"}
ALONE: dict[str, Any] = {"methods": ["laser"], "baselines": []}
EACH_STEP = {"checkpoint_every": 1}

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes FOLDER/config.yaml, the small config with blocks of one's own, for a run in FOLDER/run."""
    shop = write_shop(tmp_path_factory.mktemp("shop"))

    def write(folder: Path, **blocks: Any) -> Path:
        config = small_config(folder / "run", shop, tiny_llama, **blocks)
        return write_config(folder / "config.yaml", config)

    return write


@pytest.fixture(scope="module")
def finished(make: Make, repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed run of every method, trained by one launch of two ranks: folder and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    config = make(folder)
    printed = launched(repo_root, config, folder / "log.txt")
    return folder / "run", printed + ended(typed("run", str(config)))


@pytest.fixture(scope="module")
def one_rank(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Laser alone that shares nothing with the other, on one rank."""
    folder = tmp_path_factory.mktemp("one_rank")
    printed = ended(recloom("run", str(make(folder, **ALONE, parallel={"cpu_ranks": 1}))))
    assert "on 1 ranks" in printed
    return folder / "run"


def steps_of(run: Path, key: str) -> list[dict[str, Any]]:
    """Steps and validations of a training, in order, without times."""
    rows = json_lines(run / f"tune/{key}/metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def losses(run: Path, key: str) -> np.ndarray:
    return np.array([row["loss"] for row in steps_of(run, key) if "loss" in row])


def validations(run: Path, key: str) -> dict[int, float]:
    """NDCG@10 by the number of epochs behind it; fails where one is told twice."""
    rows = [row for row in steps_of(run, key) if "loss" not in row]
    found = {row["epoch"]: row["validation_N@10"] for row in rows}
    assert len(found) == len(rows)
    return found


def model_of(run: Path, key: str) -> dict[str, np.ndarray]:
    weights: dict[str, np.ndarray] = load_file(run / f"tune/{key}/model/{WEIGHTS}")
    return weights


def vectors_in(folder: Path) -> np.ndarray:
    vectors_NH: np.ndarray = load_file(folder / "vectors.safetensors")["vectors"]
    return vectors_NH


def items_of(run: Path, key: str) -> np.ndarray:
    return vectors_in(run / f"tune/{key}/model/items")


def manifest(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return told


def flipped(path: Path) -> Path:
    """The file with one bit changed, its size and place kept."""
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    return path


def test_run_ends_with_every_method_in_every_scenario(finished: tuple[Path, str]) -> None:
    run, printed = finished
    assert [name for name in STAGES if (run / f"stages/{name}.json").is_file()] == list(STAGES)
    rows = json_lines(run / "results.jsonl")
    for scenario in ("overall", "warm", "cold"):
        found = {(row["method"], row["metric"]) for row in rows if row["scenario"] == scenario}
        metrics = ("H@3", "H@10", "N@3", "N@10", "MRR")
        assert found == {(method, k) for method in NAMES | {"Base", "mf"} for k in metrics}
    users = {row["scenario"]: row["users"] for row in rows}
    assert users["overall"] == NUM_USERS and min(users["warm"], users["cold"]) >= 3
    assert {row["protocol"] for row in rows} == {"full catalogue, 20 items, items seen stay in"}
    page = (run / "report/index.html").read_text()
    assert all(name in page for name in ("Laser", "w/o M-Former", "average pooling"))
    assert printed.count("on 2 ranks") == len(BITUNE)


def test_vectors_of_methods_differ(finished: tuple[Path, str]) -> None:
    """What stands around the text reaches the LLM: no two networks rank by the same vectors.

    Without stage 1 the network is Laser's, and stage 2's first epoch is what stage 1's first would have
    been: both may keep its weights.
    """
    run, _ = finished
    networks = [name for name in TRAINED if name != "no_stage_1"]
    for name in networks:
        for other in networks[: networks.index(name)]:
            one, two = (vectors_in(run / f"rank/{key}") for key in (name, other))
            assert one.shape == two.shape == (NUM_USERS, 64) and np.abs(one - two).max() > 1e-3
    for name in TRAINED:
        assert items_of(run, f"{name}_2").shape == (NUM_ITEMS, 64)


def rank_by_hand(scores_I: np.ndarray, target: int) -> int:
    return 1 + int((np.delete(scores_I, target) >= scores_I[target]).sum())


def test_ranks_and_metrics_are_those_of_the_vectors(finished: tuple[Path, str]) -> None:
    run, _ = finished
    rows = pq.read_table(run / "data/tables/interactions.parquet").to_pylist()
    last = {row["user"]: row["item"] for row in sorted(rows, key=lambda row: row["timestamp"])}
    told = {
        (row["method"], row["metric"]): row["value"]
        for row in json_lines(run / "results.jsonl")
        if row["scenario"] == "overall"
    }
    for key, name, model in (("laser", "Laser", "laser_2"), ("no_stage_2", "w/o stage 2", "laser_1")):
        users_NH, items_IH = vectors_in(run / f"rank/{key}"), items_of(run, model)
        users_NH = users_NH / np.linalg.norm(users_NH, axis=1, keepdims=True)
        scores_NI = users_NH @ (items_IH / np.linalg.norm(items_IH, axis=1, keepdims=True)).T
        ranking = pq.read_table(run / f"rank/{key}.parquet").to_pylist()
        assert {row["user"]: row["target"] for row in ranking} == last
        for row, scores_I in zip(ranking, scores_NI, strict=True):
            assert row["rank"] == rank_by_hand(scores_I.astype(np.float32), row["target"])
            best = np.sort(scores_I)[::-1][: len(row["items"])]
            np.testing.assert_allclose(row["cosines"], best, atol=1e-5)
        ranks_N = np.array([row["rank"] for row in ranking])
        assert told[name, "H@3"] == pytest.approx(np.mean(ranks_N <= 3))
        assert told[name, "MRR"] == pytest.approx(np.mean(1 / ranks_N))


def test_the_best_epoch_is_the_model_and_stage_2_keeps_its_items(finished: tuple[Path, str]) -> None:
    run, _ = finished
    for name in TRAINED:
        first, second = validations(run, f"{name}_1"), validations(run, f"{name}_2")
        assert list(first) == ([0] if name == "no_stage_1" else [0, 1, 2]) and list(second) == [0, 1]
        for number, values in ((1, first), (2, second)):
            told = manifest(run / f"tune/{name}_{number}/model")
            best = max(values.values())
            assert told["epoch"] == min(epoch for epoch, value in values.items() if value == best)
            assert told["validation_N@10"] == best
        assert second[0] == pytest.approx(max(first.values()), abs=1e-12), "what came in competes"
        one, two = items_of(run, f"{name}_1"), items_of(run, f"{name}_2")
        assert np.array_equal(one, two), "stage 2 trains against the items of stage 1"


def test_losses_of_an_epoch_follow_the_steps(finished: tuple[Path, str]) -> None:
    """All users an epoch, each once; equation 12; what the router did is told."""
    run, _ = finished
    rows = [row for row in steps_of(run, "laser_1") if "loss" in row]
    assert {epoch: sum(row["samples"] for row in rows if row["epoch"] == epoch) for epoch in (0, 1)} == {
        0: NUM_USERS,
        1: NUM_USERS,
    }
    for row in rows:
        assert row["loss"] == pytest.approx(row["contrastive"] + 0.01 * row["balance"], abs=1e-6)
        assert sum(row[f"expert_{expert}"] for expert in range(3)) == pytest.approx(1)
        assert 1 <= row["balance"] <= 3 + 1e-6
    free = [row for row in steps_of(run, "no_mformer_1") if "loss" in row]
    assert all(row["loss"] == pytest.approx(row["contrastive"]) and "balance" not in row for row in free)


def test_nothing_of_the_llm_is_kept(finished: tuple[Path, str]) -> None:
    run, _ = finished
    for name in TRAINED:
        for number in (1, 2):
            weights = model_of(run, f"{name}_{number}")
            assert not any(key.startswith("llm.") for key in weights)
            assert not (run / f"tune/{name}_{number}/checkpoints").exists(), "they have served"
            assert not (run / f"tune/{name}_{number}/items").exists()
    counted = json.loads((run / "parameters.json").read_text())
    for name, key in (("Laser", "laser_2"), ("w/o prefix", "no_prefix_2"), ("w/o MoE", "no_moe_2")):
        assert counted[f"{name} in all"] == sum(weight.size for weight in model_of(run, key).values())
    assert counted["w/o prefix in all"] == 64 and counted["Bi-Tuning (2 tokens and a suffix)"] == 3 * 64


def test_export_is_the_matrix_and_the_index_of_each_method(finished: tuple[Path, str]) -> None:
    run, _ = finished
    for key, model in (("laser", "laser_2"), ("no_stage_2", "laser_1"), ("average", "average_2")):
        folder = run / f"export/{key}"
        assert np.array_equal(vectors_in(folder), items_of(run, model))
        keys = pq.read_table(folder / "items.parquet").to_pydict()
        assert keys["item"] == list(range(NUM_ITEMS)) and sorted(keys["item_key"])[0] == "i00"
        users_NH = vectors_in(run / f"rank/{key}")
        users_NH = np.ascontiguousarray(users_NH / np.linalg.norm(users_NH, axis=1, keepdims=True))
        cosines_NK, _ = faiss.read_index(str(folder / "items.faiss")).search(users_NH, 10)
        ranking = pq.read_table(run / f"rank/{key}.parquet")
        np.testing.assert_allclose(cosines_NK, ranking["cosines"].to_pylist(), atol=1e-5)


def test_second_run_skips_every_stage(finished: tuple[Path, str]) -> None:
    run, _ = finished
    printed = ended(typed("run", str(run.parent / "config.yaml")))
    assert printed.count("(finished, skipped)") == len(STAGES)


@pytest.mark.parametrize(
    ("options", "again"),
    [
        (("--evaluate.ks", "[5]"), {"evaluate", "report"}),
        (("--rank.mask_seen", "true"), {"rank", "evaluate", "report"}),
        (("--methods", "[laser, average]"), {"rank", "export", "evaluate", "report"}),
        (("--learn.test", "4"), {"texts_test", "rank", "evaluate", "report"}),
        (("--embed.chunk", "7", "--stage_2.log_every", "1", "--stage_2.checkpoint_every", "3"), set()),
        (
            ("--stage_2.epochs", "2"),
            {*(name for name in BITUNE if "_2_" in name), "rank", "export", "evaluate", "report"},
        ),
    ],
)
def test_a_change_runs_what_depends_on_it(
    finished: tuple[Path, str], options: tuple[str, ...], again: set[str]
) -> None:
    config = str(finished[0].parent / "config.yaml")
    planned = states_of(ended(typed("run", config, *options, "--dry-run")))
    assert {name for name in planned if planned[name] == "run"} == again


def test_one_rank_learns_what_two_do(finished: tuple[Path, str], one_rank: Path) -> None:
    """Dropout included: the same texts and states byte by byte, the same losses, nearly the same weights."""
    two_ranks, _ = finished
    for name in ("texts/train", "texts/items", "texts/valid", "states"):
        assert contents(one_rank / name) == contents(two_ranks / name), name
    for key, epochs in (("laser_1", 2), ("laser_2", 1)):
        assert len(losses(one_rank, key)) == len(losses(two_ranks, key)) >= 3 * epochs
        np.testing.assert_allclose(losses(one_rank, key), losses(two_ranks, key), atol=1e-5, rtol=0)
        one, two = model_of(one_rank, key), model_of(two_ranks, key)
        assert set(one) == set(two) and "suffix_H" in one
        for name in one:
            np.testing.assert_allclose(one[name], two[name], atol=1e-3, rtol=0, err_msg=name)
        np.testing.assert_allclose(items_of(one_rank, key), items_of(two_ranks, key), atol=1e-4, rtol=0)


def assert_as_undisturbed(run: Path, finished: Path, key: str) -> None:
    assert steps_of(run, key) == steps_of(finished, key)
    assert contents(run / f"tune/{key}/model") == contents(finished / f"tune/{key}/model")
    assert not list((run / f"tune/{key}").glob("*.tmp")) and not (run / f"tune/{key}/items").exists()


def killed_rank(
    repo_root: Path, config: Path, log: Path, condition: Callable[[], bool], number: int = -1
) -> None:
    """Start a launch and SIGKILL one of its ranks as soon as the condition holds; the launch must fail."""
    process = start(repo_root, config, log)
    wait_for(process, condition, log)
    ranks_of(process)[number].send_signal(signal.SIGKILL)
    assert process.wait(timeout=300) != 0, "a killed rank must not look like success"


def resumed_step(log: str, label: str) -> int:
    found = re.search(rf"{label}: \d+ steps on 2 ranks, resuming after step (\d+)", log)
    assert found is not None, log[-4000:]
    return int(found[1])


def latest_step(folder: Path) -> int:
    path = folder / "checkpoints/latest.json"
    return int(json.loads(path.read_text())["step"]) if path.is_file() else 0


def test_killed_inside_an_epoch_of_stage_1(
    finished: tuple[Path, str], make: Make, repo_root: Path, tmp_path: Path
) -> None:
    """The epoch's item embeddings stay those of the weights it began with."""
    run, config = copied(finished[0], tmp_path, ("bitune_1_laser",)), make(tmp_path, stage_1=EACH_STEP)
    shutil.rmtree(run / "tune/laser_1")
    folder, epoch = (
        run / "tune/laser_1",
        sum(row.get("epoch") == 0 for row in steps_of(finished[0], "laser_1")),
    )
    killed_rank(repo_root, config, tmp_path / "first.txt", lambda: latest_step(folder) >= 1)
    assert not (run / "stages/bitune_1_laser.json").exists()
    before = contents(folder / "items/epoch_0")

    log = launched(repo_root, config, tmp_path / "second.txt")
    assert 1 <= resumed_step(log, "bitune 1 laser") < epoch, "in the middle of the first epoch"
    assert log.count("resuming after step") == 1 and "bitune_2_laser: finished, skipped" in log
    assert {"manifest.json", "vectors.safetensors"} == set(before)
    assert_as_undisturbed(run, finished[0], "laser_1")


def test_killed_while_items_are_embedded(
    finished: tuple[Path, str], make: Make, repo_root: Path, tmp_path: Path
) -> None:
    """At the start of the second epoch; the other rank is killed, and the parts that are whole stay."""
    run, config = copied(finished[0], tmp_path, ("bitune_1_laser",)), make(tmp_path)
    folder = run / "tune/laser_1"
    shutil.rmtree(folder)
    parts = folder / "items/epoch_1.parts"
    begun = parts / "00000.sha256"
    killed_rank(repo_root, config, tmp_path / "first.txt", begun.is_file, 0)
    kept = {path.name: path.read_bytes() for path in parts.glob("*.safetensors")}
    if not (folder / "items/epoch_1").exists():
        assert 1 <= len(kept) <= 4, "six texts a part"
    log = launched(repo_root, config, tmp_path / "second.txt")
    assert resumed_step(log, "bitune 1 laser") == latest_epoch_step(finished[0])
    assert_as_undisturbed(run, finished[0], "laser_1")


def latest_epoch_step(run: Path) -> int:
    """The last step of the first epoch."""
    return max(row["step"] for row in steps_of(run, "laser_1") if row["epoch"] == 0)


def test_killed_in_stage_2(finished: tuple[Path, str], make: Make, repo_root: Path, tmp_path: Path) -> None:
    """Its checkpoints hold nothing of the LLM either."""
    run, config = copied(finished[0], tmp_path, ("bitune_2_laser",)), make(tmp_path, stage_2=EACH_STEP)
    folder = run / "tune/laser_2"
    shutil.rmtree(folder)
    killed_rank(repo_root, config, tmp_path / "first.txt", lambda: latest_step(folder) >= 1)
    assert_checkpoint_is_small(folder / "checkpoints")
    log = launched(repo_root, config, tmp_path / "second.txt")
    assert resumed_step(log, "bitune 2 laser") >= 1
    assert_as_undisturbed(run, finished[0], "laser_2")


def assert_checkpoint_is_small(folder: Path) -> None:
    states = list((folder / f"step_{latest_step(folder.parent)}").glob("*model_states.pt"))
    assert states
    for path in states:
        module = torch.load(path, weights_only=False, map_location="cpu")["module"]
        assert module and not any(name.startswith("llm.") for name in module)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert written < 3 * 2**20, "the LLM alone has 12 MiB"


@pytest.mark.slow
def test_killed_behind_a_validation(
    finished: tuple[Path, str], make: Make, repo_root: Path, tmp_path: Path
) -> None:
    """The next start goes on at the same step and judges again: told once, kept once."""
    run, config = copied(finished[0], tmp_path, ("bitune_1_laser",)), make(tmp_path)
    folder = run / "tune/laser_1"
    shutil.rmtree(folder)

    def judged() -> bool:
        metrics = folder / "metrics.jsonl"
        return metrics.is_file() and metrics.read_text().count("validation_N@10") == 2

    killed_rank(repo_root, config, tmp_path / "first.txt", judged)
    launched(repo_root, config, tmp_path / "second.txt")
    assert_as_undisturbed(run, finished[0], "laser_1")


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        (f"tune/laser_2/model/{WEIGHTS}", "rank"),
        ("tune/laser_2/model/items/vectors.safetensors", "export"),
        ("states/standard.safetensors", "rank"),
        ("texts/test/shard-00000.tar", "rank"),
    ],
)
def test_a_flipped_byte_is_one_sentence(
    finished: tuple[Path, str], make: Make, tmp_path: Path, name: str, stage: str
) -> None:
    run, config = copied(finished[0], tmp_path, (stage,)), make(tmp_path)
    if stage == "rank":
        shutil.rmtree(run / "rank")
    path = flipped(run / name)
    message = refused(typed("run", str(config), "--until", stage))
    assert str(path) in message and "the checksum differs from the manifest's" in message


@pytest.mark.parametrize(
    ("name", "ranks"),
    [("states/standard.safetensors", 2), (f"tune/laser_1/model/{WEIGHTS}", 1)],
)
def test_a_flipped_byte_is_not_trained_on(
    finished: tuple[Path, str], make: Make, tmp_path: Path, name: str, ranks: int
) -> None:
    refuses_to_train(copied(finished[0], tmp_path, ("bitune_2_laser",)), make(tmp_path), name, ranks)


def test_a_flipped_byte_of_the_texts_is_not_trained_on(
    finished: tuple[Path, str], make: Make, tmp_path: Path
) -> None:
    run, config = copied(finished[0], tmp_path, ("bitune_2_laser",)), make(tmp_path)
    refuses_to_train(run, config, "texts/train/shard-00000.tar", 2)


def refuses_to_train(run: Path, config: Path, name: str, ranks: int) -> None:
    path = flipped(run / name)
    done = recloom("run", str(config), "--until", "bitune_2_laser", "--parallel.cpu_ranks", str(ranks))
    assert {line for line in failed(done) if "the checksum differs from the manifest's" in line} == {
        f"{path}: the checksum differs from the manifest's: delete the folder and make it again."
    }


def failed(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a command said that ended in its ranks: sentences, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return [line for line in done.stderr.splitlines() if line.strip()]


def transfer(folder: Path, trained: Path) -> dict[str, Any]:
    """Blocks that start from a finished run on films of our own, and train nothing."""
    epochs = {"stage_1": {"epochs": 0}, "stage_2": {"epochs": 0}}
    films = write_films(folder)
    films["items"]["attributes"] = []
    return {**ALONE, **epochs, "data": films, "bitune": {"start_from": str(trained)}}


def test_another_data_set_starts_from_the_finished_models(
    finished: tuple[Path, str], make: Make, tmp_path: Path
) -> None:
    """Zero-shot (Figure 3): the weights are those of the other run, items and users its own."""
    config = make(tmp_path, **transfer(tmp_path, finished[0]))
    ended(recloom("run", str(config)))
    run = tmp_path / "run"
    one, two = model_of(run, "laser_1"), model_of(finished[0], "laser_2")
    assert set(one) == set(two) and all(np.array_equal(one[name], two[name]) for name in one)
    assert items_of(run, "laser_1").shape == (30, 64) and not (run / "tune/laser_2").exists()
    rows = json_lines(run / "results.jsonl")
    assert {(row["dataset"], row["method"]) for row in rows} == {("Films", "Base"), ("Films", "Laser")}


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        ({"mformer": {"tokens": 3}}, "its mformer.experts_KLW is (3, 2, 16), this network's is (3, 3, 16)"),
        ({"start_from": "nowhere"}, "nowhere/tune/laser_1/model: no manifest.json"),
    ],
)
def test_weights_that_do_not_fit_are_one_sentence(
    finished: tuple[Path, str], make: Make, tmp_path: Path, blocks: dict[str, Any], told: str
) -> None:
    run = copied(finished[0], tmp_path)
    trained = finished[0]
    config = make(tmp_path, **ALONE, bitune={"start_from": str(trained), **blocks}, parallel={"cpu_ranks": 1})
    lines = failed(recloom("run", str(config), "--until", "bitune_1_laser"))
    assert sum(told in line for line in lines) == 1, lines
    assert (run / "stages/texts.json").is_file()


def test_a_share_of_the_users_is_learned_from(make: Make, finished: tuple[Path, str], tmp_path: Path) -> None:
    ended(typed("run", str(make(tmp_path, **ALONE, learn={"share": 0.25})), "--until", "texts_test"))
    run, users = tmp_path / "run", {}
    for part in ("train", "valid", "test"):
        reader = ShardReader(run / f"texts/{part}")
        users[part] = {reader.record(n)["meta"]["user"] for n in range(len(reader))}
    assert len(users["train"]) == 6 and users["valid"] == users["train"]
    assert len(users["test"]) == NUM_USERS
    assert contents(run / "backbone") != contents(finished[0] / "backbone"), "it learns from fewer, too"
    assert contents(run / "texts/test") == contents(finished[0] / "texts/test")


@pytest.mark.slow
def test_another_backbone(make: Make, tmp_path: Path) -> None:
    backbones = {"sequential": {"model": "sasrec", "embedding": 8, "max_epochs": 1}}
    one_stage = {"stage_1": {"epochs": 1}, "stage_2": {"epochs": 0}, "parallel": {"cpu_ranks": 1}}
    ended(recloom("run", str(make(tmp_path, **ALONE, **one_stage, backbones=backbones))))
    assert model_of(tmp_path / "run", "laser_1")["mformer.router.weight_KD"].shape == (3, 8)
    rows = json_lines(tmp_path / "run/results.jsonl")
    assert {(row["task"], row["backbone"]) for row in rows} == {("sequential", "sasrec")}
    assert {row["method"] for row in rows} == {"Base", "Laser"}
