"""Bulk requests with soft rows, in one pass: against token prompts and Hugging Face, faulty, killed."""

from __future__ import annotations

import itertools
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

from killed_pass import Chunks, Killer, assert_chunks_were_kept, chunks, embeds

from recloom.data_shards.artifacts import file_sha256
from recloom.kernels.trie_build import trie_of
from recloom.launcher.bulk import run_pass
from recloom.launcher.bulk_soft import SoftRows, fault_of_soft, mixed_prompt
from recloom.launcher.bulk_store import plan_chunks
from recloom.trainer.requests import Answer, BulkSettings, Catalogue, Choices, Request, SoftPrompt

SETTINGS = BulkSettings(dtype="float32", max_model_len=256, kv_cache_gb=0.25, threads=1, chunk_size=16)
END = 2
LINE_END = 198
HIDDEN = 64
draw = random.Random(0)
TITLES = [
    tuple(draw.randrange(300, 330) for _ in range(2)) + tuple(draw.randrange(300, 900) for _ in range(2))
    for _ in range(60)
]
SHARED = tuple(draw.randrange(300, 900) for _ in range(40))  # longer than a block of the prefix cache
PROMPTS = [SHARED + tuple(draw.randrange(300, 900) for _ in range(draw.randint(1, 50))) for _ in range(4)]
FEW = (3, 14, 15, 9, 26, 5)


@dataclass(frozen=True)
class Pass:
    """Requests and answers by kind; the chunks that stood when the worker was killed, then and at the end."""

    asked: dict[str, list[Request]]
    answers: dict[str, list[Answer]]
    before: Chunks
    after: Chunks


def soft_prompt(path: Path, positions: tuple[int, ...], rows: tuple[int, ...]) -> SoftPrompt:
    return SoftPrompt(str(path), file_sha256(path), positions, rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("soft")


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def twins(folder: Path, model: Any) -> list[tuple[Request, Request]]:
    """Token prompts of every sort, and the same with the embedding table's own rows at some places."""
    save_file({"rows": model.get_input_embeddings().weight.detach().clone()}, folder / "table.safetensors")
    path = folder / "titles.trie"
    trie_of(TITLES, end_token=END, vocab_size=49152).save(path)
    spelled = [TITLES[item] for item in FEW]
    choices = Choices(tuple((*t, LINE_END) for t in spelled), tuple((*t, END) for t in spelled), 2)
    sorts: list[dict[str, Any]] = [
        {"max_tokens": 12},
        {"max_tokens": 1, "score_ids": (1, 2, 3, 500)},
        {"max_tokens": 30, "choices": choices},
        {"max_tokens": 30, "catalogue": Catalogue(str(path))},
        {"max_tokens": 1, "catalogue": Catalogue(str(path), excluded=(0,), num_beams=4)},
    ]
    plain = [Request(prompt, **sort) for sort in sorts for prompt in PROMPTS]
    return [(one, replace(one, soft=table_rows(folder / "table.safetensors", one))) for one in plain]


def table_rows(path: Path, request: Request) -> SoftPrompt:
    last = len(request.prompt_ids) - 1
    positions = (0, 5, 6, 33, last)
    return soft_prompt(path, positions, tuple(request.prompt_ids[n] for n in positions))


@pytest.fixture(scope="module")
def random_rows(folder: Path, twins: list[tuple[Request, Request]]) -> dict[str, list[Request]]:
    """Prompts with vectors that no token has; the prompts of a pair differ in nothing else."""
    path, catalogue = folder / "random.safetensors", Catalogue(str(folder / "titles.trie"))
    rows_NH = torch.randn(20, HIDDEN, generator=torch.Generator().manual_seed(1))
    rows_NH[0] = 0
    save_file({"rows": rows_NH}, path)
    softs = [soft_prompt(path, (1, 2, 39), rows) for rows in ((1, 2, 3), (4, 5, 6), (1, 2, 19))]
    pairs = [(prompt, soft) for prompt in PROMPTS[:2] for soft in softs]
    beams = replace(catalogue, allowed=FEW, num_beams=len(FEW))  # as many as items: nothing is pruned
    zero = replace(softs[0], positions=(1, 2, 20), rows=(1, 2, 0))
    token_0 = (*SHARED[:20], 0, *SHARED[21:], 700)
    return {
        "text": [Request(prompt, 12, soft=soft) for prompt, soft in pairs],
        "scores": [Request(prompt, 1, score_ids=tuple(range(128)), soft=soft) for prompt, soft in pairs],
        "greedy item": [Request(prompt, 30, catalogue=catalogue, soft=soft) for prompt, soft in pairs],
        "beams": [Request(prompt, 1, catalogue=beams, soft=soft) for prompt, soft in pairs],
        "zero": [
            Request(token_0, 1, score_ids=(5, 6), soft=zero),
            Request(token_0, 1, score_ids=(5, 6), soft=replace(zero, positions=(1, 2), rows=(1, 2))),
        ],
    }


@pytest.fixture(scope="module")
def faulty(folder: Path, random_rows: dict[str, list[Request]]) -> dict[str, Request]:
    """What each refusal says, and the request that earns it."""
    good = random_rows["text"][0]
    wide, damaged, other = (folder / f"{name}.safetensors" for name in ("wide", "damaged", "other"))
    save_file({"rows": torch.ones(9, HIDDEN + 1)}, wide)
    save_file({"rows": torch.tensor([[1.0] * HIDDEN, [float("nan")] * HIDDEN])}, other)
    save_file({"rows": torch.ones(9, HIDDEN)}, damaged)
    softs = {
        "rows are 65 wide, the model's embeddings 64": soft_prompt(wide, (1,), (2,)),
        "the checksum is not the request's": soft_prompt(damaged, (1,), (2,)),
        "No such file": replace(good.soft, file=str(folder / "absent.safetensors")),
        f"soft position {len(good.prompt_ids)}": soft_prompt(other, (len(good.prompt_ids),), (0,)),
        "soft position -1": soft_prompt(other, (-1,), (0,)),
        "soft position 5 behind 5": soft_prompt(other, (5, 5), (0, 0)),
        "2 soft positions for 1 soft rows": soft_prompt(other, (5, 6), (0,)),
        "soft row 2, ": soft_prompt(other, (5,), (2,)),
        "not all finite": soft_prompt(other, (5,), (1,)),
    }
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    return {said: replace(good, soft=soft) for said, soft in softs.items()}


@pytest.fixture(scope="module")
def done(
    tiny_llama: Path,
    folder: Path,
    twins: list[tuple[Request, Request]],
    random_rows: dict[str, list[Request]],
    faulty: dict[str, Request],
) -> Pass:
    """All requests in one pass, whose worker is killed behind the second chunk."""
    asked = {"plain": [one for one, _ in twins], "table": [two for _, two in twins], **random_rows}
    asked["faulty"] = list(faulty.values())
    killer = Killer(folder / "out")
    killer.start()
    requests = [request for kind in asked.values() for request in kind]
    found = iter(run_pass(SETTINGS, tiny_llama, requests, folder / "out"))
    answers = {kind: [next(found) for _ in group] for kind, group in asked.items()}
    return Pass(asked, answers, killer.before, chunks(folder / "out"))


@torch.no_grad()
def logprobs_behind(model: Any, request: Request, tokens: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities (T + 1, V) of what follows the prompt and each of T tokens behind it."""
    behind_TH = model.get_input_embeddings().weight[list(tokens)]
    both_1LH = torch.cat((embeds(model, request), behind_TH[None]), 1)
    return model(inputs_embeds=both_1LH).logits[0, len(request.prompt_ids) - 1 :].log_softmax(-1)


def sequence_logprob(model: Any, request: Request, tokens: tuple[int, ...]) -> float:
    steps = logprobs_behind(model, request, tokens[:-1])
    return sum(step_V[token].item() for step_V, token in zip(steps, tokens, strict=True))


def test_rows_of_the_table_answer_as_the_tokens_do(done: Pass) -> None:
    for plain, table in zip(done.answers["plain"], done.answers["table"], strict=True):
        assert plain.error is None and table.error is None
        assert (table.token_ids, table.items, table.text) == (plain.token_ids, plain.items, plain.text)
        assert table.logprob == pytest.approx(plain.logprob, abs=1e-3)
        assert table.scores == pytest.approx(plain.scores, abs=1e-3)


def test_text_equals_hugging_face(done: Pass, model: Any) -> None:
    for request, answer in zip(done.asked["text"], done.answers["text"], strict=True):
        with torch.no_grad():
            ids = model.generate(inputs_embeds=embeds(model, request), max_new_tokens=12, do_sample=False)
        assert list(answer.token_ids) == ids[0].tolist()
        assert answer.logprob == pytest.approx(sequence_logprob(model, request, answer.token_ids), abs=1e-3)


def test_scores_equal_hugging_face(done: Pass, model: Any) -> None:
    for kind in ("scores", "zero"):
        for request, answer in zip(done.asked[kind], done.answers[kind], strict=True):
            want = logprobs_behind(model, request, ())[0, list(request.score_ids)]
            torch.testing.assert_close(torch.tensor(answer.scores), want, atol=1e-3, rtol=0)


def test_a_greedy_item_is_one_of_the_catalogue(done: Pass, model: Any) -> None:
    for request, answer in zip(done.asked["greedy item"], done.answers["greedy item"], strict=True):
        assert [(*TITLES[item], END) for item in answer.items] == [answer.token_ids]
        assert answer.logprob == pytest.approx(sequence_logprob(model, request, answer.token_ids), abs=1e-3)


def test_beams_rank_by_hugging_face_log_probabilities(done: Pass, model: Any) -> None:
    for request, answer in zip(done.asked["beams"], done.answers["beams"], strict=True):
        want = {item: sequence_logprob(model, request, (*TITLES[item], END)) for item in FEW}
        assert set(answer.items) == set(FEW)
        assert answer.scores == pytest.approx([want[item] for item in answer.items], abs=1e-3)
        assert list(answer.scores) == sorted(answer.scores, reverse=True)


def test_faulty_soft_rows_are_refused_and_the_others_answered(done: Pass, faulty: dict[str, Request]) -> None:
    for said, answer in zip(faulty, done.answers["faulty"], strict=True):
        assert answer.finish_reason == "refused"
        assert said in str(answer.error)
    others = [answer for kind, group in done.answers.items() if kind != "faulty" for answer in group]
    assert all(answer.error is None for answer in others)


def test_a_killed_pass_keeps_its_chunks(done: Pass) -> None:
    assert_chunks_were_kept(done.before, done.after)


def test_a_file_is_hashed_once(
    random_rows: dict[str, list[Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(
        "recloom.launcher.bulk_soft.file_sha256", lambda path: hashed.append(path) or "another"
    )
    files = SoftRows(HIDDEN, torch.float32)
    softs = [request.soft for request in random_rows["text"]]
    assert all("checksum" in str(fault_of_soft(soft, 99, files)) for soft in softs if soft is not None)
    assert len(hashed) == 1


def test_the_mixed_prompt_is_in_the_engines_format(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    save_file({"rows": torch.arange(8.0, dtype=torch.float64).reshape(4, 2)}, path)
    soft = soft_prompt(path, (1, 3), (2, 0))
    mixed = mixed_prompt(Request((7, -5, 0, 60_000), 1, soft=soft), soft, SoftRows(2, torch.bfloat16))
    assert mixed["prompt_embeds"].dtype == torch.bfloat16
    assert mixed["prompt_embeds"].tolist() == [[0, 0], [4, 5], [0, 0], [0, 1]]
    assert mixed["prompt_embeds"].signbit().tolist() == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]
    assert mixed["prompt_token_ids"] == [7, 0, 0, 0]
    assert mixed["is_token_ids"] == [True, False, True, False]


def test_numbers_too_large_for_the_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    save_file({"rows": torch.tensor([[1e6], [1.0]])}, path)
    files = SoftRows(1, torch.float16)
    assert "torch.float16" in str(fault_of_soft(soft_prompt(path, (0,), (0,)), 1, files))
    assert fault_of_soft(soft_prompt(path, (0,), (1,)), 1, files) is None


@pytest.mark.parametrize("tensors", [{"other": torch.ones(1, 1)}, {"rows": torch.ones(1)}])
def test_a_file_without_rows_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "rows.safetensors"
    save_file(tensors, path)
    assert "rows" in str(fault_of_soft(soft_prompt(path, (0,), (0,)), 1, SoftRows(1, torch.float32)))


def test_chunks_follow_soft_rows_as_they_follow_tokens() -> None:
    """What the cache can share stands together: the same rows at the same places, not the ids below them."""
    rows = [(n % 2, n % 3) for n in range(6)]
    asked = [
        Request((n, n, 9), 1, soft=SoftPrompt("file", "", (0, 1), pair), meta={"n": n})
        for n, pair in enumerate(rows)
    ]
    planned = [request for chunk in plan_chunks(asked, 2) for request in chunk]
    firsts = [request.soft.rows[0] for request in planned if request.soft is not None]
    assert len(list(itertools.groupby(firsts))) == 2
