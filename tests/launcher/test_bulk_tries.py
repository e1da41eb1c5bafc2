"""Constrained bulk passes through vLLM: only choices and catalogue items come back, with exact scores."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from recloom.kernels.generate import generate_items
from recloom.kernels.trie_build import trie_of
from recloom.launcher.bulk import run_pass
from recloom.trainer.requests import Answer, BulkSettings, Catalogue, Choices, Request

SETTINGS = BulkSettings(dtype="float32", max_model_len=256, kv_cache_gb=0.25, threads=1, chunk_size=32)
END = 2
LINE_END = 198
draw = random.Random(0)
TITLES = [
    tuple(draw.randrange(300, 340) for _ in range(draw.randint(1, 3)))
    + tuple(draw.randrange(300, 900) for _ in range(draw.randint(0, 5)))
    for _ in range(400)
]
TITLES += [TITLES[0], TITLES[1] + (301,), TITLES[2][:1]]
PROMPTS = [tuple(draw.randrange(300, 900) for _ in range(draw.randint(5, 60))) for _ in range(6)]


def choices(items: list[int], count: int) -> Choices:
    spelled = [TITLES[item] for item in items]
    return Choices(tuple((*t, LINE_END) for t in spelled), tuple((*t, END) for t in spelled), count)


@pytest.fixture(scope="module")
def trie_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trie") / "titles.trie"
    trie_of(TITLES, end_token=END, vocab_size=49152).save(path)
    return path


@pytest.fixture(scope="module")
def answers(
    tiny_llama: Path, trie_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[list[Answer]]:
    """Answers to every prompt: a list of choices, one item greedily, the best items, and free text."""
    path = str(trie_file)
    kinds = [
        [Request(p, 60, choices=choices(list(range(n, n + 10)), 3)) for n, p in enumerate(PROMPTS)],
        [Request(p, 30, catalogue=Catalogue(path)) for p in PROMPTS],
        [Request(p, 30, catalogue=Catalogue(path, allowed=tuple(range(40)))) for p in PROMPTS],
        [Request(p, 1, catalogue=Catalogue(path, excluded=(0, 400), num_beams=5)) for p in PROMPTS],
        [Request(p, 5) for p in PROMPTS],
        [
            Request(PROMPTS[0], 9, catalogue=Catalogue(path + ".absent")),
            Request(PROMPTS[0], 9, choices=choices([1], 2)),
        ],
        [Request(PROMPTS[0] * 20, 9, catalogue=Catalogue(path))],
    ]
    out = tmp_path_factory.mktemp("bulk") / "out"
    found = iter(run_pass(SETTINGS, tiny_llama, [request for kind in kinds for request in kind], out))
    return [[next(found) for _ in kind] for kind in kinds]


def test_a_list_holds_different_choices_and_ends(answers: list[list[Answer]]) -> None:
    for first, answer in enumerate(answers[0]):
        assert answer.finish_reason == "stop" and answer.token_ids[-1] == END
        lines = " ".join(map(str, answer.token_ids[:-1])).split(f" {LINE_END} ")
        allowed = [" ".join(map(str, TITLES[item])) for item in range(first, first + 10)]
        assert len(lines) == 3 and set(lines) <= set(allowed) and len(set(lines)) == 3


def test_greedy_items_are_catalogue_items(answers: list[list[Answer]]) -> None:
    for answer in answers[1]:
        assert answer.items and all(answer.token_ids == (*TITLES[item], END) for item in answer.items)
        assert answer.scores == (answer.logprob,) * len(answer.items)
    assert all(set(answer.items) <= set(range(40)) and answer.items for answer in answers[2])


def test_beams_equal_those_of_hugging_face(answers: list[list[Answer]], tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    trie = trie_of(TITLES, end_token=END, vocab_size=49152)
    wanted = generate_items(model, PROMPTS, trie, 5, 5, excluded=[(0, 400)] * len(PROMPTS))
    for answer, expected in zip(answers[3], wanted, strict=True):
        assert list(answer.items) == expected.items
        assert answer.scores == pytest.approx(expected.scores, abs=2e-4)


def test_the_others_are_not_touched(answers: list[list[Answer]], tiny_llama: Path, tmp_path: Path) -> None:
    alone = run_pass(SETTINGS, tiny_llama, [Request(p, 5) for p in PROMPTS], tmp_path / "alone")
    assert [answer.token_ids for answer in answers[4]] == [answer.token_ids for answer in alone]


def test_what_cannot_be_kept_is_refused(answers: list[list[Answer]]) -> None:
    (absent, too_many), (too_long,) = answers[5], answers[6]
    assert "absent" in str(absent.error)
    assert "count is 2 of 1" in str(too_many.error)
    assert too_long.finish_reason == "refused"
