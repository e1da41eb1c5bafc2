"""Bulk requests for vectors: against Hugging Face with soft rows around the text, faulty, killed, mixed."""

from __future__ import annotations

import hashlib
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))

from killed_pass import Chunks, Killer, assert_chunks_were_kept, chunks, embeds

from recloom.data_shards.artifacts import file_sha256
from recloom.data_shards.errors import UserError
from recloom.launcher import bulk_supervisor
from recloom.launcher.bulk import find_fault, run_pass
from recloom.launcher.bulk_embed import vector_answer
from recloom.trainer.requests import (
    Answer,
    BulkSettings,
    Catalogue,
    Choices,
    Request,
    SoftPrompt,
    chunk_text,
    pack_vector,
    read_answers,
    read_chunk,
    read_requests,
    request_line,
    unpack_vector,
    write_requests,
)

LONGEST, HIDDEN, PREFIX, END = 256, 64, 4, 2
SETTINGS = BulkSettings(dtype="float32", max_model_len=LONGEST, kv_cache_gb=0.25, threads=1, chunk_size=8)
SUFFIX = 40  # the last row of the file; a user's prefix stands before
draw = random.Random(0)
SHARED = tuple(draw.randrange(300, 900) for _ in range(40))  # longer than a block of the prefix cache


def some_text() -> tuple[int, ...]:
    return SHARED + tuple(draw.randrange(300, 900) for _ in range(draw.randint(1, 90)))


def vector_request(path: Path, user: int, text: tuple[int, ...], ends: int | None = None) -> Request:
    """[prefix][text][suffix], or the token `ends` instead of the suffix."""
    ids = (0,) * PREFIX + text + (ends if ends is not None else 0,)
    places = tuple(range(PREFIX)) + (() if ends is not None else (len(ids) - 1,))
    rows = tuple(range(user * PREFIX, (user + 1) * PREFIX)) + (() if ends is not None else (SUFFIX,))
    soft = SoftPrompt(str(path), file_sha256(path), places, rows)
    return Request(ids, 0, meta={"user": user}, soft=soft, embed=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.safetensors"
    save_file({"rows": torch.randn(SUFFIX + 1, HIDDEN, generator=torch.Generator().manual_seed(1))}, path)
    return path


@pytest.fixture(scope="module")
def sound(rows: Path) -> list[Request]:
    """Prefixes shared and not, suffixes, end tokens, plain tokens, and a prompt that fills the model."""
    asked = [vector_request(rows, n % 10, some_text()) for n in range(24)]
    asked += [vector_request(rows, n, some_text(), ends=END) for n in range(4)]
    asked += [Request(some_text(), 0, meta={"n": n}, embed=True) for n in range(4)]
    return [*asked, vector_request(rows, 3, (7,) * (LONGEST - PREFIX - 1))]


@pytest.fixture(scope="module")
def faulty(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Request]:
    """What each refusal says, and the request that earns it."""
    wide = tmp_path_factory.mktemp("wide") / "wide.safetensors"
    save_file({"rows": torch.ones(SUFFIX + 1, HIDDEN + 1)}, wide)
    good = vector_request(rows, 1, (5, 6))
    return {
        "the prompt is empty": Request((), 0, embed=True),
        f"the prompt has {LONGEST + 1} tokens": vector_request(rows, 3, (7,) * (LONGEST - PREFIX)),
        "the vocabulary has 49152": vector_request(rows, 3, (49152,)),
        "rows are 65 wide": vector_request(wide, 1, (5, 6)),
        "soft row 41": vector_request(rows, 10, (5, 6)),
        "max_tokens = 3": replace(good, max_tokens=3),
        "stop, score_ids": replace(good, stop=("x",)),
    }


@dataclass(frozen=True)
class Pass:
    """Answers; the chunks that stood when the worker was killed, then and at the end."""

    sound: list[Answer]
    faulty: list[Answer]
    before: Chunks
    after: Chunks


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embed") / "out"


@pytest.fixture(scope="module")
def done(tiny_llama: Path, out: Path, sound: list[Request], faulty: dict[str, Request]) -> Pass:
    """One pass, whose worker is killed behind the second chunk."""
    killer = Killer(out)
    killer.start()
    answers = run_pass(SETTINGS, tiny_llama, [*sound, *faulty.values()], out)
    return Pass(answers[: len(sound)], answers[len(sound) :], killer.before, chunks(out))


@torch.no_grad()
def last_states(model: Path, requests: list[Request], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Hugging Face's last hidden state at the end of each prompt (S, H)."""
    from transformers import AutoModel

    llm: Any = AutoModel.from_pretrained(model, dtype=dtype).eval()
    found = []
    for request in requests:
        found.append(llm(inputs_embeds=embeds(llm, request)).last_hidden_state[0, -1].float())
    return torch.stack(found)


def vectors(answers: list[Answer]) -> torch.Tensor:
    return torch.from_numpy(np.stack([unpack_vector(answer.vector or "") for answer in answers]))


def test_vectors_equal_hugging_face(done: Pass, sound: list[Request], tiny_llama: Path) -> None:
    assert [answer.error for answer in done.sound] == [None] * len(sound)
    want_SH = last_states(tiny_llama, sound)
    torch.testing.assert_close(vectors(done.sound), want_SH, atol=1e-3, rtol=0)
    assert (want_SH.norm(dim=1) - 1).abs().min() > 1  # so nothing was normalised


def test_token_prompts_alone_in_bfloat16(sound: list[Request], tiny_llama: Path, tmp_path: Path) -> None:
    plain = [request for request in sound if request.soft is None]
    settings = SETTINGS.model_copy(update={"dtype": "bfloat16"})
    answers = run_pass(settings, tiny_llama, plain, tmp_path / "out")
    want_SH = last_states(tiny_llama, plain, torch.bfloat16)
    assert torch.cosine_similarity(vectors(answers), want_SH, dim=1).min() > 0.999


def test_faulty_requests_are_refused_and_the_others_answered(done: Pass, faulty: dict[str, Request]) -> None:
    for said, answer in zip(faulty, done.faulty, strict=True):
        assert (answer.finish_reason, answer.vector) == ("refused", None)
        assert said in str(answer.error)


def test_a_killed_pass_keeps_its_chunks(done: Pass) -> None:
    assert_chunks_were_kept(done.before, done.after)


def test_a_finished_pass_starts_no_engine(
    done: Pass,
    out: Path,
    tiny_llama: Path,
    sound: list[Request],
    faulty: dict[str, Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bulk_supervisor, "supervise", None)  # any worker start would fail
    assert run_pass(SETTINGS, tiny_llama, [*sound, *faulty.values()], out) == done.sound + done.faulty
    assert read_answers(out) == done.sound + done.faulty


def test_a_mixed_pass_is_one_sentence(tiny_llama: Path, tmp_path: Path) -> None:
    mixed = [Request((3,), 0, embed=True), Request((3,), 1), Request((4,), 1)]
    with pytest.raises(UserError, match=r"embed is true in 1 of 3: .* in two passes\.$"):
        run_pass(SETTINGS, tiny_llama, mixed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 1},
        {"stop": ("x",)},
        {"score_ids": (1,)},
        {"choices": Choices(((1,),), ((2,),), 1)},
        {"catalogue": Catalogue("titles.trie")},
    ],
)
def test_what_belongs_to_text_is_refused(change: dict[str, Any]) -> None:
    assert find_fault(Request((1, 2), 0, embed=True), 10, 2) is None
    assert "where a vector is asked for" in str(
        find_fault(replace(Request((1,), 0, embed=True), **change), 10, 2)
    )


@pytest.mark.parametrize(("value", "said"), [([], "without a vector"), ([1.0, float("inf")], "not finite")])
def test_a_broken_vector_is_an_error(value: list[float], said: str) -> None:
    answer = vector_answer(Request((1,), 0, embed=True), torch.tensor(value))
    assert (answer.finish_reason, answer.vector) == ("error", None)
    assert said in str(answer.error)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9))
def test_vectors_survive_the_disk(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("chunk") / "chunk-00000.jsonl"
    vector_H = np.array(values, dtype=np.float32)
    answer = Answer("k", "", (), 0.0, (), "stop", None, {}, vector=pack_vector(vector_H))
    path.write_text(chunk_text([answer]))
    (again,) = read_chunk(path)
    assert unpack_vector(again.vector or "").tobytes() == vector_H.tobytes()


def test_older_passes_keep_keys_and_chunks(tmp_path: Path) -> None:
    """Lines without a vector are as they were before there were any."""
    request = Request((1, 2), 5, ("x",), (), {"u": 1})
    assert request.key == "c48cfc2c2afd55fbb157e3e2bd1c702d"
    assert "embed" not in request_line(request) and "soft" not in request_line(request)
    body = (
        '{"error":null,"finish_reason":"stop","items":[],"key":"k","logprob":-0.5,"meta":{},"scores":[],'
        '"text":"a","token_ids":[1]}\n'
    )
    old = body + '{"sha256":"' + hashlib.sha256(body.encode()).hexdigest() + '"}\n'
    (tmp_path / "chunk-00000.jsonl").write_text(old)
    answer = Answer("k", "a", (1,), -0.5, (), "stop", None, {})
    assert read_chunk(tmp_path / "chunk-00000.jsonl") == [answer]
    assert chunk_text([answer]) == old


def test_the_key_names_what_is_asked_for(tmp_path: Path) -> None:
    one, other = Request((1,), 0), Request((1,), 0, embed=True)
    assert one.key != other.key
    write_requests(tmp_path / "asked.jsonl", [one, other])
    assert read_requests(tmp_path / "asked.jsonl") == [one, other]
