"""RecSysLLM by the commands a user types: all methods and families, ranks, kills, LoRA, sources, damage."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from killed_pass import Chunks, assert_chunks_were_kept, chunks
from small_a_llmrec import write_attentive_llama, write_films
from small_recipe import write_config
from small_recsysllm import METHODS, NUM_ITEMS, NUM_USERS, small_config, write_shop
from test_a_llmrec import (
    contents,
    copied,
    ended,
    json_lines,
    killed_when,
    launched,
    refused,
    states_of,
    typed,
)
from test_laser import failed, flipped, killed_rank, latest_step
from test_run import recloom

from recloom.data_shards.shards import ShardReader
from recloom.trainer.config_io import read_config
from recloom.trainer.stages import Run
from recloom.trainer.systems.recsysllm.methods import METHODS as OF_THE_SYSTEM
from recloom.trainer.systems.recsysllm.saved import load_model
from recloom.trainer.systems.recsysllm.settings import FAMILIES

NAMES = {OF_THE_SYSTEM[key].name for key in METHODS}  # type: ignore[index]
PRETRAIN, GENERATE = ([f"{stage}_{key}" for key in METHODS] for stage in ("pretrain", "generate"))
STAGES = ("prepare", "corpus", "questions", "backbones", *PRETRAIN, *GENERATE, "evaluate", "report")
BACKBONES = {"direct": "mf", "sequential": "sasrec", "rating": "deepfm"}
ASKED = 9
TIMES = {"seconds", "data_seconds"}
ALONE: dict[str, Any] = {"methods": ["recsysllm"], "parallel": {"cpu_ranks": 1}}
NO_BACKBONES: dict[str, Any] = {"backbones": dict.fromkeys(BACKBONES)}
ONE_FAMILY: dict[str, Any] = {"corpus": {"families": ["sequential"]}, **NO_BACKBONES}

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes FOLDER/config.yaml, the small config with blocks of one's own, for a run in FOLDER/run."""
    shop = write_shop(tmp_path_factory.mktemp("shop"))
    llm = write_attentive_llama(tiny_llama, tmp_path_factory.mktemp("llm"))

    def write(folder: Path, **blocks: Any) -> Path:
        config = small_config(folder / "run", shop, llm, **blocks)
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
    """The training of RecSysLLM alone, which shares nothing with the other run, on one rank."""
    folder = tmp_path_factory.mktemp("one_rank")
    ended(typed("run", str(make(folder, **ALONE)), "--until", "pretrain_recsysllm"))
    return folder / "run"


def steps_of(run: Path, key: str = "recsysllm") -> list[dict[str, Any]]:
    """Steps and validations of a training, in order, without times."""
    rows = json_lines(run / f"tune/{key}/metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def losses(run: Path, key: str = "recsysllm") -> np.ndarray:
    """Of every step, then of the validation."""
    return np.array([row.get("loss", row.get("validation_loss")) for row in steps_of(run, key)])


def model_of(run: Path, key: str = "recsysllm") -> dict[str, np.ndarray]:
    """Every weight that was trained."""
    weights: dict[str, np.ndarray] = {}
    for path in sorted((run / f"tune/{key}/model").glob("*.safetensors")):
        weights |= load_file(path)
    return weights


def answers_of(run: Path, key: str, family: str, prompt: str = "seen") -> list[dict[str, Any]]:
    """In the order of the questions."""
    rows = [
        row
        for path in sorted((run / f"answers/{key}/{family}_{prompt}").glob("chunk-*.jsonl"))
        for row in json_lines(path)
    ]
    return sorted(rows, key=lambda row: row["index"])


def records_of(folder: Path) -> list[dict[str, Any]]:
    reader = ShardReader(folder)
    return [reader.record(index) for index in range(len(reader))]


def test_run_ends_with_every_method_family_and_prompt(finished: tuple[Path, str]) -> None:
    run, printed = finished
    assert [name for name in STAGES if (run / f"stages/{name}.json").is_file()] == list(STAGES)
    assert printed.count("on 2 ranks") == len(METHODS)
    rows = json_lines(run / "results.jsonl")
    prompted = {name + mark for name in NAMES for mark in ("", " *")}
    for family in FAMILIES:
        own = [row for row in rows if row["task"] == family]
        alone = set() if family == "sequential" else {"sequential task only", "sequential task only *"}
        free = {f"{name}, free" for name in prompted} if family in ("sequential", "direct") else set()
        base = {"Base"} if family in BACKBONES else set()
        assert {row["method"] for row in own} == (prompted - alone) | base | {
            name for name in free if name.removesuffix(", free") not in alone
        }
        assert {row["backbone"] for row in own} == {BACKBONES.get(family, "")}
        assert {row["users"] for row in own} == {ASKED}
    metrics = {
        family: {row["metric"] for row in rows if (row["task"], row["method"]) == (family, "RecSysLLM *")}
        for family in FAMILIES
    }
    ranks, texts = {"H@1", "N@1", "H@5", "N@5", "MRR"}, {"ROUGE-1", "ROUGE-2", "ROUGE-L"}
    assert metrics["sequential"] == metrics["direct"] == ranks
    assert metrics["rating"] == {"RMSE", "MAE", "invalid_rate"}
    assert metrics["explanation"] == metrics["review"] == texts | {"BLEU-2", "BLEU-4", "invalid_rate"}
    page = (run / "report/index.html").read_text()
    assert all(name in page for name in ("RecSysLLM *", "SASRec (backbone)", "explanation", "ROUGE-L"))


def test_the_corpus_holds_out_a_template_and_every_test_row(finished: tuple[Path, str]) -> None:
    """Training rows by all templates but one; both prompts ask about the same rows, by their own template."""
    run, _ = finished
    for family in FAMILIES:
        train, valid = (records_of(run / f"corpus/{family}_{part}") for part in ("train", "valid"))
        assert len(train) == 12 and len(valid) == 3
        seen, unseen = (records_of(run / f"asked/{family}_{prompt}") for prompt in ("seen", "unseen"))
        assert len(seen) == len(unseen) == ASKED
        learned = {record["meta"]["template_id"] for record in train + valid}
        (first,) = {record["meta"]["template_id"] for record in seen}
        (held_out,) = {record["meta"]["template_id"] for record in unseen}
        assert len(learned) > 3 and held_out not in learned and first != held_out
        about = [
            [(record["meta"]["user"], record["meta"]["answer"], record["meta"]["items"]) for record in asked]
            for asked in (seen, unseen)
        ]
        assert about[0] == about[1]


def last_rows(run: Path) -> dict[int, dict[str, Any]]:
    """Each user's last row in time."""
    rows = pq.read_table(run / "data/tables/interactions.parquet").to_pylist()
    return {row["user"]: row for row in sorted(rows, key=lambda row: row["timestamp"])}


def test_questions_are_about_the_last_rows(finished: tuple[Path, str]) -> None:
    """And their answers are what those rows say."""
    run, _ = finished
    last = last_rows(run)
    answer = {"rating": "rating", "review": "summary", "sequential": "item", "direct": "item"}
    for family, column in answer.items():
        for record in records_of(run / f"asked/{family}_seen"):
            meta = record["meta"]
            assert meta["answer"] == last[meta["user"]][column]
    for record in records_of(run / "asked/explanation_seen"):
        row = last[record["meta"]["user"]]
        assert record["meta"]["answer"] in row["review"] or record["meta"]["answer"] == row["summary"]


def test_the_metrics_are_those_of_the_answers(finished: tuple[Path, str]) -> None:
    run, _ = finished
    told = {
        (row["task"], row["method"], row["metric"]): row["value"] for row in json_lines(run / "results.jsonl")
    }
    for key, name in (("recsysllm", "RecSysLLM"), ("one_d", "1D positions")):
        for prompt, mark in (("seen", ""), ("unseen", " *")):
            for family in ("sequential", "direct"):
                rows = answers_of(run, key, family, prompt)
                hits = [row["answer"] in row["ranked"] for row in rows]
                first = [row["answer"] == row["ranked"][0] for row in rows]
                assert told[family, name + mark, "H@5"] == pytest.approx(np.mean(hits))
                assert told[family, name + mark, "H@1"] == pytest.approx(np.mean(first))
            rows = answers_of(run, key, "rating", prompt)
            assert told["rating", name + mark, "RMSE"] == pytest.approx(rmse(run, rows))


def rmse(run: Path, rows: list[dict[str, Any]]) -> float:
    """What is no number counts as the mean of the training ratings."""
    train = [row for row in train_rows(run) if row["rating"] is not None]
    mean = float(np.mean([row["rating"] for row in train]))
    read = [float(row["text"]) if re.fullmatch(r"\d+(\.\d+)?", row["text"].strip()) else mean for row in rows]
    return float(np.sqrt(np.mean((np.clip(read, 1, 5) - [row["answer"] for row in rows]) ** 2)))


def train_rows(run: Path) -> list[dict[str, Any]]:
    """All rows but each user's last two."""
    rows = pq.read_table(run / "data/tables/interactions.parquet").to_pylist()
    rows.sort(key=lambda row: (row["user"], row["timestamp"]))
    users = [row["user"] for row in rows]
    return [row for place, row in enumerate(rows) if users[place : place + 3] == [row["user"]] * 3]


def test_items_are_searched_along_the_trie(finished: tuple[Path, str]) -> None:
    """A ranking is of different items with falling scores; a direct one is of the candidates."""
    run, _ = finished
    for key in METHODS:
        for row in answers_of(run, key, "sequential"):
            assert len(set(row["ranked"])) == 5 and set(row["ranked"]) <= set(range(NUM_ITEMS))
            assert row["scores"] == sorted(row["scores"], reverse=True)
    for prompt in ("seen", "unseen"):
        for row in answers_of(run, "recsysllm", "direct", prompt):
            assert len(row["items"]) == 4 and sorted(row["ranked"]) == sorted(row["items"])


def test_no_two_methods_learn_or_answer_alike(finished: tuple[Path, str]) -> None:
    """The same texts under other masks, orders, positions: other losses, other scores."""
    run, _ = finished
    scores = [np.array([row["scores"] for row in answers_of(run, key, "sequential")]) for key in METHODS]
    for place, key in enumerate(METHODS):
        for other in range(place):
            assert np.abs(scores[place] - scores[other]).max() > 1e-3, (key, METHODS[other])
            assert losses(run, key)[0] != losses(run, METHODS[other])[0]
    for key in METHODS[:-1]:
        trained = losses(run, key)[:-1]
        assert trained[-1] < trained[0] - 0.5, "the loss of a random model falls fast"
    samples = [row["samples"] for row in steps_of(run) if "samples" in row]
    assert sum(samples) == 2 * 12 * len(FAMILIES), "two epochs of all families"
    alone = [row["samples"] for row in steps_of(run, "sequential_only") if "samples" in row]
    assert sum(alone) == 2 * 12


def test_answers_depend_on_the_question(finished: tuple[Path, str]) -> None:
    run, _ = finished
    for family in ("sequential", "direct"):
        firsts = [row["scores"][0] for row in answers_of(run, "recsysllm", family)]
        assert len(set(firsts)) > ASKED // 2
    seen, unseen = (answers_of(run, "recsysllm", "sequential", prompt) for prompt in ("seen", "unseen"))
    assert all(one["scores"] != other["scores"] for one, other in zip(seen, unseen, strict=True))


def test_second_run_skips_every_stage(finished: tuple[Path, str]) -> None:
    run, _ = finished
    printed = ended(typed("run", str(run.parent / "config.yaml")))
    assert printed.count("(finished, skipped)") == len(STAGES)


@pytest.mark.parametrize(
    ("options", "again"),
    [
        (("--ask.batch", "4", "--pretrain.log_every", "9", "--pretrain.checkpoint_every", "3"), set()),
        (("--backbones.sequential.max_epochs", "2"), {"backbones", "evaluate", "report"}),
        (("--methods", "[recsysllm, one_d]"), {"evaluate", "report"}),
        (("--ask.free", "false"), {*GENERATE, "evaluate", "report"}),
        (("--ask.users", "4"), {"questions", *GENERATE, "evaluate", "report"}),
        (("--mask.entity_share", "0.3"), {*PRETRAIN, *GENERATE, "evaluate", "report"}),
        (("--pretrain.lora", "{r: 2}"), {*PRETRAIN, *GENERATE, "evaluate", "report"}),
        (("--corpus.negatives", "2"), {"corpus", "questions", *PRETRAIN, *GENERATE, "evaluate", "report"}),
    ],
)
def test_a_change_runs_what_depends_on_it(
    finished: tuple[Path, str], options: tuple[str, ...], again: set[str]
) -> None:
    config = str(finished[0].parent / "config.yaml")
    planned = states_of(ended(typed("run", config, *options, "--dry-run")))
    assert {name for name in planned if planned[name] == "run"} == again


def test_one_rank_learns_what_two_do(finished: tuple[Path, str], one_rank: Path) -> None:
    """The same texts byte by byte, the same masks, the same losses, nearly the same weights."""
    two_ranks, _ = finished
    assert contents(one_rank / "corpus") == contents(two_ranks / "corpus")
    assert len(losses(one_rank)) == len(losses(two_ranks)) >= 7
    np.testing.assert_allclose(losses(one_rank), losses(two_ranks), atol=1e-5, rtol=0)
    tokens = [[row["tokens"] for row in steps_of(run) if "tokens" in row] for run in (one_rank, two_ranks)]
    assert tokens[0] == tokens[1]
    one, two = model_of(one_rank), model_of(two_ranks)
    assert set(one) == set(two) and {"marks", "intra"} <= set(one)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=2e-3, rtol=0, err_msg=name)


def cut_off(finished: Path, make: Make, repo_root: Path, folder: Path) -> tuple[Path, Path]:
    """A run whose training lost a rank in the middle of its first epoch: the run, its config."""
    run = copied(finished, folder, ("pretrain_recsysllm",))
    config = make(folder, pretrain={"checkpoint_every": 1})
    shutil.rmtree(run / "tune/recsysllm")
    killed_rank(repo_root, config, folder / "first.txt", lambda: latest_step(run / "tune/recsysllm") >= 1)
    assert not (run / "stages/pretrain_recsysllm.json").exists()
    return run, config


def test_killed_inside_an_epoch(
    finished: tuple[Path, str], make: Make, repo_root: Path, tmp_path: Path
) -> None:
    """It goes on with the masks that an undisturbed training draws: losses and weights are bit-equal."""
    run, config = cut_off(finished[0], make, repo_root, tmp_path)
    log = launched(repo_root, config, tmp_path / "second.txt")
    found = re.search(r"pretrain recsysllm: \d+ steps on 2 ranks, resuming after step (\d+)", log)
    epoch = sum(row.get("epoch") == 0 and "loss" in row for row in steps_of(finished[0]))
    assert found is not None and 1 <= int(found[1]) < epoch, log[-4000:]
    assert steps_of(run) == steps_of(finished[0])
    assert contents(run / "tune/recsysllm/model") == contents(finished[0] / "tune/recsysllm/model")
    assert not (run / "tune/recsysllm/checkpoints").exists(), "they have served"


@pytest.mark.slow
def test_a_damaged_checkpoint_is_told(
    finished: tuple[Path, str], make: Make, repo_root: Path, tmp_path: Path
) -> None:
    run, config = cut_off(finished[0], make, repo_root, tmp_path)
    folder = run / "tune/recsysllm/checkpoints"
    for path in sorted(folder.glob("step_*/*.pt")):
        path.write_bytes(path.read_bytes()[:1000])
    lines = failed(recloom("run", str(config), "--until", "pretrain_recsysllm"))
    assert any(str(folder) in line and "delete" in line for line in lines), lines


def test_killed_while_answering(finished: tuple[Path, str], make: Make, tmp_path: Path) -> None:
    """Chunks that are committed stay as they are, and the rest comes out the same."""
    run = copied(finished[0], tmp_path, ("generate_recsysllm", "evaluate", "report"))
    config, folder = make(tmp_path), run / "answers/recsysllm"
    shutil.rmtree(folder)
    second = folder / "sequential_seen/chunk-00000.jsonl"
    killed_when(config, tmp_path / "log.txt", second.is_file, "--until", "generate_recsysllm")
    assert not (run / "stages/generate_recsysllm.json").exists()
    before = all_chunks(folder)
    ended(typed("run", str(config)))
    assert_chunks_were_kept(before, all_chunks(folder))
    assert contents(folder) == contents(finished[0] / "answers/recsysllm")
    assert (run / "results.jsonl").read_text() == (finished[0] / "results.jsonl").read_text()


def all_chunks(folder: Path) -> Chunks:
    return {path: told for part in sorted(folder.iterdir()) for path, told in chunks(part).items()}


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("tune/recsysllm/model/model.safetensors", "generate_recsysllm"),
        ("tune/recsysllm/model/blanks.safetensors", "generate_recsysllm"),
        ("asked/direct_unseen/shard-00000.tar", "generate_recsysllm"),
        ("answers/recsysllm/rating_seen/chunk-00000.jsonl", "evaluate"),
        ("backbones/sequential/backbone.safetensors", "evaluate"),
        ("data/tables/interactions.parquet", "evaluate"),
    ],
)
def test_a_flipped_byte_is_one_sentence(
    finished: tuple[Path, str], make: Make, tmp_path: Path, name: str, stage: str
) -> None:
    run, config = copied(finished[0], tmp_path, (stage,)), make(tmp_path)
    if stage.startswith("generate"):
        shutil.rmtree(run / "answers/recsysllm")
    path = flipped(run / name)
    message = refused(typed("run", str(config), "--until", stage))
    assert str(path) in message and "the checksum differs from the manifest's" in message


@pytest.mark.slow
def test_a_flipped_byte_of_the_corpus_is_not_trained_on(
    finished: tuple[Path, str], make: Make, tmp_path: Path
) -> None:
    run, config = copied(finished[0], tmp_path, ("pretrain_recsysllm",)), make(tmp_path)
    path = flipped(run / "corpus/review_train/shard-00000.tar")
    command = ("run", str(config), "--until", "pretrain_recsysllm", "--parallel.cpu_ranks", "1")
    found = [line for line in failed(recloom(*command)) if "the checksum differs" in line]
    assert found == [
        f"{path}: the checksum differs from the manifest's: delete the folder and make it again."
    ]


def test_low_rank_updates_leave_the_model_as_it_is(make: Make, tmp_path: Path) -> None:
    """Only the updates and the tables are written; with them the model answers."""
    lora = {"r": 2, "lora_dropout": 0.1}
    config = make(tmp_path, **ALONE, **ONE_FAMILY, pretrain={"lora": lora, "gradient_checkpointing": True})
    ended(typed("run", str(config)))
    run, settings = tmp_path / "run", read_config(config)
    base = load_file(Path(settings.model.path) / "model.safetensors")
    folder = run / "tune/recsysllm/model"
    assert {path.name for path in folder.iterdir()} == {
        "adapter.json",
        "adapter.safetensors",
        "blanks.json",
        "blanks.safetensors",
        "manifest.json",
    }
    updates = load_file(folder / "adapter.safetensors")
    assert len(updates) == 2 * 2 * 7 and all("lora_" in name for name in updates)
    assert all(np.abs(update).max() > 0 for update in updates.values()), "each has moved from its zero"
    model = load_model(Run(settings, run, Path()), OF_THE_SYSTEM["recsysllm"])
    named = {name.removeprefix("llm.").replace(".base_layer", ""): p for name, p in model.named_parameters()}
    for name, weight in base.items():
        assert torch.equal(named[name], torch.from_numpy(weight)), name
    assert {row["method"] for row in json_lines(run / "results.jsonl")} == {
        name + free for name in ("RecSysLLM", "RecSysLLM *") for free in ("", ", free")
    }


def test_what_the_data_cannot_feed_is_one_sentence(make: Make, tmp_path: Path) -> None:
    """Films without ratings and texts: two families are left, and another one is refused by its name."""
    films = {**write_films(tmp_path), "users": None}
    films["interactions"]["columns"] |= dict.fromkeys(("rating", "review", "summary"))
    films["items"]["attributes"] = []
    config = make(tmp_path, **ALONE, **NO_BACKBONES, data=films)
    ended(typed("run", str(config), "--until", "questions"))
    found = {path.name for path in (tmp_path / "run/corpus").iterdir()}
    assert found == {f"{family}_{part}" for family in ("sequential", "direct") for part in ("train", "valid")}
    message = refused(typed("run", str(config), "--until", "corpus", "--corpus.families", "[review]"))
    assert "corpus.families: review needs" in message and "that Films does not have" in message


@pytest.mark.slow
def test_texts_that_are_too_long_name_what_to_lower(
    finished: tuple[Path, str], make: Make, tmp_path: Path
) -> None:
    copied(finished[0], tmp_path, ("pretrain_recsysllm",))
    config = make(tmp_path, pretrain={"context": 40}, parallel={"cpu_ranks": 1})
    lines = failed(recloom("run", str(config), "--until", "pretrain_recsysllm"))
    assert any("context = 40: the longest sample of" in line and "corpus.negatives" in line for line in lines)


@pytest.mark.slow
def test_a_dump_with_reviews_feeds_all_families(make: Make, shared_data: Path, tmp_path: Path) -> None:
    """The genuine Musical Instruments of 2014, whose items have keys for titles."""
    path = str(shared_data / "amazon2014-musical-instruments")
    data = {"source": "amazon2014", "path": path, "threshold": 0}
    ended(
        typed("run", str(make(tmp_path, **ALONE, data=data, corpus={"review_words": 40}, ask={"users": 4})))
    )
    rows = json_lines(tmp_path / "run/results.jsonl")
    assert {row["task"] for row in rows} == set(FAMILIES)
    assert {row["dataset"] for row in rows} == {"Amazon 2014 Musical Instruments"}


@pytest.mark.slow
def test_two_seeds_share_a_corpus_and_differ_in_masks(make: Make, tmp_path: Path) -> None:
    seeds = {"seeds": [1, 2], "ask": {"users": 3}}
    ended(typed("run", str(make(tmp_path, **ALONE, **ONE_FAMILY, **seeds))))
    one, two = (tmp_path / f"run/seed_{seed}" for seed in (1, 2))
    assert contents(one / "corpus") == contents(two / "corpus")
    assert contents(one / "asked") == contents(two / "asked")
    assert losses(one)[0] != losses(two)[0] and NUM_USERS > 3


def write_tiny_glm(tokenizer: Path, folder: Path) -> Path:
    """A random GLM of two layers, with LLaMA's tokenizer; returns `folder`."""
    from transformers import AutoTokenizer, GlmConfig, GlmForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    GlmForCausalLM(GlmConfig(vocab_size=49152, **sizes, **heads, **ends)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_glm_with_low_rank_updates(make: Make, tiny_llama: Path, tmp_path: Path) -> None:
    """The paper's family of models: gate and up are one layer there, so six are adapted."""
    glm = write_tiny_glm(tiny_llama, tmp_path / "glm")
    config = make(tmp_path, **ALONE, **ONE_FAMILY, pretrain={"lora": {"r": 2}})
    ended(typed("run", str(config), "--model.path", str(glm)))
    updates = load_file(tmp_path / "run/tune/recsysllm/model/adapter.safetensors")
    assert len(updates) == 2 * 2 * 6
    assert len(json_lines(tmp_path / "run/results.jsonl")) > 10
