"""Requests and answers on disk: round trips, names, damage."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from recloom.data_shards.artifacts import write_manifest
from recloom.data_shards.errors import UserError
from recloom.trainer.requests import (
    REQUESTS,
    Answer,
    BulkSettings,
    Catalogue,
    Choices,
    Request,
    SoftPrompt,
    chunk_text,
    read_answers,
    read_chunk,
    read_requests,
    write_requests,
)

META = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.integers()), max_size=3)
IDS = st.lists(st.integers(0, 50_000), max_size=5).map(tuple)
SPELLINGS = st.lists(IDS, max_size=3).map(tuple)
REQUEST = st.builds(
    Request,
    IDS,
    st.integers(1, 99),
    st.lists(st.text(), max_size=2).map(tuple),
    IDS,
    META,
    st.none() | st.builds(Choices, SPELLINGS, SPELLINGS, st.integers(1, 3)),
    st.none() | st.builds(Catalogue, st.text(), st.none() | IDS, IDS, st.integers(1, 9)),
    st.none() | st.builds(SoftPrompt, st.text(), st.text(), IDS, IDS),
)
SOFT = SoftPrompt("rows.safetensors", "a", (0,), (7,))


def answer_to(request: Request, text: str = "ok\n\u2028") -> Answer:
    return Answer(request.key, text, (1, 2), -0.5, (-1.0, float("-inf")), "stop", None, request.meta)


def make_pass(folder: Path, requests: list[Request]) -> None:
    """A finished pass of two chunks."""
    write_requests(folder / REQUESTS, requests)
    unique = list({request.key: request for request in requests}.values())
    (folder / "chunk-00000.jsonl").write_text(chunk_text([answer_to(r, "a") for r in unique[:1]]))
    (folder / "chunk-00001.jsonl").write_text(chunk_text([answer_to(r, "b") for r in unique[1:]]))
    write_manifest(folder)


@given(st.lists(REQUEST, max_size=4))
def test_requests_survive_the_disk(tmp_path_factory: pytest.TempPathFactory, requests: list[Request]) -> None:
    path = tmp_path_factory.mktemp("requests") / "requests.jsonl"
    write_requests(path, requests)
    again = read_requests(path)
    assert again == requests
    assert [request.key for request in again] == [request.key for request in requests]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_ids": (1,)},
        {"max_tokens": 6},
        {"stop": ("y",)},
        {"score_ids": (1,)},
        {"meta": {"u": 2}},
        {"soft": SOFT},
    ],
)
def test_key_names_the_whole_content(change: dict) -> None:
    request = Request((1, 2), 5, ("x",), (), {"u": 1})
    assert replace(request).key == request.key
    assert replace(request, **change).key != request.key


@pytest.mark.parametrize("change", [{"file": "b"}, {"sha256": "b"}, {"positions": (1,)}, {"rows": (8,)}])
def test_key_names_the_soft_rows(change: dict) -> None:
    request = Request((1, 2), 5, soft=SOFT)
    assert replace(request, soft=replace(SOFT, **change)).key != request.key


def test_a_request_without_soft_rows_keeps_its_old_key() -> None:
    """As it was before there were any: finished passes are found by it."""
    assert Request((1, 2), 5, ("x",), (), {"u": 1}).key == "c48cfc2c2afd55fbb157e3e2bd1c702d"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt_ids": [1], "max_tok', "Invalid JSON"),
        ('{"prompt_ids": ["x"], "max_tokens": 1}', "prompt_ids.0"),
        ('{"max_tokens": 1}', "prompt_ids"),
        ('{"prompt_ids": [1], "max_tokens": 1, "temperature": 1}', "temperature"),
    ],
)
def test_bad_request_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "requests.jsonl"
    write_requests(path, [Request((1,), 1)])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match="line 2") as caught:
        read_requests(path)
    assert said in str(caught.value)


def test_missing_request_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such request file"):
        read_requests(tmp_path / "none.jsonl")


def test_chunk_damage_is_found_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "chunk-00000.jsonl"
    whole = chunk_text([answer_to(Request((i,), 1)) for i in range(2)]).encode()
    path.write_bytes(whole)
    assert [answer.text for answer in read_chunk(path)] == ["ok\n\u2028"] * 2
    body = whole.rindex(b"\n", 0, -1)
    damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, body, 7)]
    for data in (*damaged, whole[:body], whole[: body // 2], b""):
        path.write_bytes(data)
        with pytest.raises(UserError, match="damaged"):
            read_chunk(path)


def test_answers_come_in_request_order_and_duplicates_share(tmp_path: Path) -> None:
    first, second = Request((1,), 1), Request((2,), 1, meta={"u": 7})
    make_pass(tmp_path, [first, second, first])
    answers = read_answers(tmp_path)
    assert [answer.text for answer in answers] == ["a", "b", "a"]
    assert answers[1].meta == {"u": 7}
    assert answers[1].scores == (-1.0, float("-inf"))


@pytest.mark.parametrize("file", ["manifest.json", "chunk-00001.jsonl", REQUESTS])
def test_incomplete_pass_is_refused(tmp_path: Path, file: str) -> None:
    make_pass(tmp_path, [Request((1,), 1), Request((2,), 1)])
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match="run the pass again"):
        read_answers(tmp_path)


def test_damage_of_equal_size_is_refused(tmp_path: Path) -> None:
    make_pass(tmp_path, [Request((1,), 1), Request((2,), 1)])
    path = tmp_path / "chunk-00001.jsonl"
    path.write_text(path.read_text().replace('"b"', '"c"'))
    with pytest.raises(UserError, match="damaged"):
        read_answers(tmp_path)


def test_settings_refuse_unknown_and_impossible_values() -> None:
    with pytest.raises(ValidationError, match="chunksize"):
        BulkSettings.model_validate({"chunksize": 3})
    with pytest.raises(ValidationError, match="multiple of 16"):
        BulkSettings.model_validate({"block_size": 20})
