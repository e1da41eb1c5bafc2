"""The bulk pass around the engine: supervisor, folder, faults, misuse. No test here starts vLLM."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloom.data_shards.errors import UserError
from recloom.launcher import bulk, bulk_supervisor
from recloom.launcher.bulk import Engine, answer_chunk, find_fault, make_answer, run_pass
from recloom.launcher.bulk_claims import Witness, new_owner
from recloom.launcher.bulk_engines import supervise
from recloom.launcher.bulk_plan import open_pass
from recloom.launcher.bulk_store import BulkStore, model_digest, plan_chunks
from recloom.launcher.bulk_supervisor import engines_of
from recloom.launcher.bulk_tries import Tries
from recloom.launcher.bulk_work import WorkList
from recloom.trainer.requests import (
    Answer,
    BulkSettings,
    Request,
    chunk_text,
    read_answers,
    write_requests,
)


def make_model(folder: Path, weights: bytes = b"1") -> Path:
    """Files that look like a model to everything but vLLM."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def fake_answer(request: Request) -> Answer:
    return Answer(request.key, "x", (1,), 0.0, (), "stop", None, request.meta)


WORKER = "import sys,time,os,signal\nfrom multiprocessing.connection import Connection\n" + (
    "pipe = Connection(int(sys.argv[2]), readable=False)\n"
)


@pytest.mark.parametrize(
    ("script", "said", "starts"),
    [
        ("pipe.send({'answered': 0}); sys.exit(3)", "exited with code 3", 3),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV", 3),
        ("pipe.send({'answered': 0}); time.sleep(60)", "showed no progress for 0.3 s", 3),
        (
            "pipe.send({'answered': 0}); pipe.send({'error': 'failed with KeyError'})",
            "failed with KeyError",
            3,
        ),
        ("pipe.send({'error': 'failed with OSError: no such file'})", "no such file", 1),
    ],
)
def test_gives_up_with_the_reason(tmp_path: Path, script: str, said: str, starts: int) -> None:
    settings, asked = BulkSettings(max_restarts=2, stall_seconds=0.3), [Request((1,), 1)]
    store = BulkStore.describe(tmp_path / "out", make_model(tmp_path / "m"), settings, asked)
    count = "open('starts', 'a').write('x')\n"
    witness = Witness(tmp_path / "out.work/alive", settings.lease_seconds)
    plan = open_pass(store, asked, new_owner("here"), witness)
    assert plan is not None
    work = WorkList(plan, store.out, new_owner("here"), witness, settings.max_restarts)
    program = WORKER + count.replace("starts", str(tmp_path / "starts")) + script
    with open(tmp_path / "log", "wb") as log_file, pytest.raises(UserError, match="0 of 1") as caught:
        supervise(work, engines_of(settings, [sys.executable, "-c", program], [{}], log_file), 1, 2)
    assert said in str(caught.value)
    assert (tmp_path / "starts").read_text() == "x" * starts


class FailingEngine:
    """Ends each request with 'error' the first `failures` times."""

    vocab_size, max_model_len = 10, 10
    tries = Tries()

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls: list[list[Request]] = []

    def answer(self, asked: list[Request], progress: Callable[[int], None]) -> dict[str, Answer]:
        self.calls.append(asked)
        reason = "error" if len(self.calls) <= self.failures else "stop"
        error = "engine" if reason == "error" else None
        return {r.key: Answer(r.key, "", (), 0.0, (), reason, error, r.meta) for r in asked}


@pytest.mark.parametrize(("failures", "error"), [(0, None), (1, None), (2, "engine")])
def test_engine_errors_are_asked_once_more(failures: int, error: str | None) -> None:
    engine, good, bad = FailingEngine(failures), Request((1,), 1), Request((), 1)
    answers = answer_chunk(engine, [bad, good], print)  # type: ignore[arg-type]
    assert [answer.key for answer in answers] == [bad.key, good.key]
    assert answers[1].error == error
    assert engine.calls == [[good], [good] if failures else []]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request((), 1), "empty"),
        (Request((10,), 1), "vocabulary"),
        (Request((1,), 1, score_ids=(10,)), "vocabulary"),
        (Request((1,) * 8, 1), "8 tokens"),
        (Request((1,), 0), "max_tokens"),
        (Request((1,), 2, score_ids=(1,)), "max_tokens"),
        (Request((1,), 1, score_ids=(1,) * 129), "129 score ids"),
    ],
)
def test_faults_are_named(request_: Request, said: str) -> None:
    assert said in str(find_fault(request_, 10, 8))
    assert find_fault(Request((1,) * 7, 9), 10, 8) is None


def kinds(planned: list[list[Request]]) -> list[list[Request]]:
    """All requests with the same number of score ids, in the order in which they were planned."""
    flat = [request for chunk in planned for request in chunk]
    return [list(group) for _, group in itertools.groupby(flat, key=lambda request: len(request.score_ids))]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=3), st.integers(0, 2)), max_size=30),
    st.integers(1, 5),
)
def test_chunks_hold_one_kind_in_prefix_order(rows: list[tuple[list[int], int]], size: int) -> None:
    asked = [Request(tuple(ids), 1, score_ids=(1,) * n, meta={"i": i}) for i, (ids, n) in enumerate(rows)]
    planned = list(plan_chunks(asked, size))
    assert sorted(r.key for chunk in planned for r in chunk) == sorted(r.key for r in asked)
    for chunk in planned:
        assert 1 <= len(chunk) <= size * (2 if chunk[0].score_ids else 1)
        assert 2 * len(chunk) >= size or chunk[-1] in [kind[-1] for kind in kinds(planned)]
        assert len({len(r.score_ids) for r in chunk}) == 1
        assert chunk == sorted(chunk, key=lambda r: (r.prompt_ids, r.key))


def test_chunks_are_cut_between_users() -> None:
    """20 candidates a user, chunks of up to 64: three users fit, and none is split."""
    asked = [
        Request((1, 2, 3, *[user] * 30, item), 1, score_ids=(1,)) for user in range(9) for item in range(20)
    ]
    sizes = [len(chunk) for chunk in plan_chunks(asked, 64)]
    assert sizes == [60, 60, 60]


@pytest.mark.parametrize(
    ("candidates", "scored", "sizes"),
    [
        (100, True, [100, 100]),
        (128, True, [128, 128]),
        (130, True, [64, 66, 64, 66]),
        (100, False, [64, 36, 64, 36]),
        (30, True, [60]),
    ],
)
def test_a_users_candidates_stay_together_up_to_two_chunks(
    candidates: int, scored: bool, sizes: list[int]
) -> None:
    scores, length = ((1,), 1) if scored else ((), 9)
    asked = [
        Request((*[user] * 30, item), length, score_ids=scores)
        for user in range(2)
        for item in range(candidates)
    ]
    assert [len(chunk) for chunk in plan_chunks(asked, 64)] == sizes


def test_chunks_that_are_left_are_those_of_the_whole_pass(tmp_path: Path) -> None:
    """Whichever have been answered: an engine ahead may have died last."""
    asked = [Request((*[user] * (3 + user), item), 1) for user in range(6) for item in range(4)]
    settings = BulkSettings(chunk_size=6)
    store = BulkStore.describe(tmp_path / "out", make_model(tmp_path / "m"), settings, asked)
    store.settle(asked)
    whole = [(path, [request.key for request in chunk]) for path, chunk in store.todo()]
    keys = {request.key: request for request in asked}
    for done in (1, 3):
        path, chunk = whole[done]
        path.write_text(chunk_text([fake_answer(keys[key]) for key in chunk]))
    left = [(path, [request.key for request in chunk]) for path, chunk in store.todo()]
    assert left == [row for number, row in enumerate(whole) if number not in (1, 3)]


def test_changed_inputs_drop_old_answers_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, model, asked = tmp_path / "out", make_model(tmp_path / "m"), [Request((1,), 1), Request((2,), 1)]

    def prepare(settings: BulkSettings, requests: list[Request]) -> list[str]:
        store = BulkStore.describe(out, model, settings, requests)
        store.settle(requests)
        kept = sorted(store.committed())
        for path, chunk in store.todo():
            path.write_text(chunk_text([fake_answer(request) for request in chunk]))
        return kept

    everything = sorted(request.key for request in asked)
    assert prepare(BulkSettings(), asked) == []
    assert (
        prepare(BulkSettings(chunk_size=1, threads=2), asked) == everything
    )  # the answers do not depend on these
    assert not caplog.records
    assert prepare(BulkSettings(dtype="float32"), asked) == []
    assert prepare(BulkSettings(dtype="float32"), asked[:1]) == []
    make_model(tmp_path / "m", b"2")
    with caplog.at_level(logging.WARNING):
        assert prepare(BulkSettings(dtype="float32"), asked[:1]) == []
    assert "1 old chunks dropped" in caplog.messages[-1]
    assert prepare(BulkSettings(dtype="float32"), asked[:1]) == [asked[0].key]


def test_model_digest_follows_weights_not_place(tmp_path: Path) -> None:
    one, two, other = (make_model(tmp_path / name) for name in ("one", "two", "other"))
    make_model(other, b"2")
    assert model_digest(one) == model_digest(two) != model_digest(other)


def test_misuse_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, asked, out = make_model(tmp_path / "m"), tmp_path / "asked.jsonl", tmp_path / "out"
    write_requests(asked, [Request((1,), 1)])
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").touch()

    def refused(**changes: Path | str) -> str:
        given = {"model": model, "requests": asked, "out": out} | changes
        flags = [
            str(part) for name, value in given.items() for part in ("--" + name.replace("_", "-"), value)
        ]
        assert bulk.main(flags) == 2
        return capsys.readouterr().err

    assert "no Hugging Face model folder" in refused(model=tmp_path / "none")
    assert "no Hugging Face model folder" in refused(model="org/model")
    assert "no such request file" in refused(requests=tmp_path / "none")
    assert "'thesis.tex'" in refused(out=tmp_path / "used")
    assert "--chunk-size = '0'" in refused(chunk_size="0")
    assert not out.exists()


def test_two_passes_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_supervisor, "LOCK_SECONDS", 0.2)
    with bulk_supervisor.exclusive_log(tmp_path / "out"), pytest.raises(UserError, match="another pass"):
        run_pass(BulkSettings(), make_model(tmp_path / "m"), [], tmp_path / "out")


def test_no_requests_need_no_engine(tmp_path: Path) -> None:
    assert run_pass(BulkSettings(), make_model(tmp_path / "m"), [], tmp_path / "out") == []
    assert read_answers(tmp_path / "out") == []


def test_abnormal_end_is_an_error_with_its_partial_text() -> None:
    output = SimpleNamespace(
        finish_reason="error", text="par", token_ids=[1], cumulative_logprob=None, logprobs=[]
    )
    answer = make_answer(Request((1,), 1, score_ids=(2,)), output)
    assert (answer.text, answer.scores, answer.finish_reason) == ("par", (), "error")
    assert "'error'" in str(answer.error)


class SlowEngine:
    """Three steps, of which only the last finishes anything."""

    def __init__(self) -> None:
        self.left = 3

    def has_unfinished_requests(self) -> bool:
        return self.left > 0

    def step(self) -> list[SimpleNamespace]:
        self.left -= 1
        return [SimpleNamespace(finished=self.left == 0)]


def test_every_step_is_a_sign_of_life() -> None:
    """The supervisor ends a worker that is silent for long, however long the first answer takes."""
    engine, signs = Engine.__new__(Engine), []
    engine.engine = SlowEngine()  # type: ignore[assignment]
    assert len(list(engine.outputs(lambda: signs.append(1)))) == 1
    assert len(signs) == 3
