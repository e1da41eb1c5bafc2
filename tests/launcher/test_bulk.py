"""The bulk pass against Hugging Face, and killed, damaged and misused in every way."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recloom.data_shards.artifacts import file_sha256, read_manifest
from recloom.data_shards.errors import UserError
from recloom.launcher import bulk, bulk_supervisor
from recloom.launcher.bulk import answer_chunk, find_fault, run_pass
from recloom.launcher.bulk_store import BulkStore, model_digest, plan_chunks, write_chunk
from recloom.launcher.bulk_supervisor import supervise
from recloom.trainer.requests import Answer, BulkSettings, Request, read_answers, write_requests

SETTINGS = BulkSettings(dtype="float32", max_model_len=256, kv_cache_gb=0.25, threads=1, chunk_size=8)
FAULTY = [
    Request((), 4),
    Request((5, 49152), 4),
    Request((-1,), 4),
    Request((3,) * 256, 4),
    Request((3,), 1, score_ids=(49152,)),
]


def sound_requests() -> list[Request]:
    """Prompts with a common prefix longer than a cache block; text, and scores of 1 to 6 ids."""
    draw = random.Random(0)
    shared = [draw.randrange(3, 49152) for _ in range(70)]
    prompts = [
        (*shared, *(draw.randrange(3, 49152) for _ in range(draw.randrange(1, 90)))) for _ in range(60)
    ]
    scored = [
        Request(p, 1, score_ids=tuple(range(1 + i % 6)), meta={"user": i}) for i, p in enumerate(prompts[:24])
    ]
    return [Request(p, 20, meta={"user": i}) for i, p in enumerate(prompts)] + scored


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    sound = sound_requests()
    return [*FAULTY, *sound, sound[0], sound[-1]]


@pytest.fixture(scope="module")
def reference(tiny_llama: Path, requests: list[Request], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted pass."""
    out = tmp_path_factory.mktemp("bulk") / "reference"
    assert len(run_pass(SETTINGS, tiny_llama, requests, out)) == len(requests)
    return out


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def greedy(model: Any, request: Request) -> tuple[list[int], float]:
    """Hugging Face's greedy continuation and the sum of its log-probabilities."""
    prompt_BT = torch.tensor([request.prompt_ids])
    out = model.generate(
        prompt_BT,
        attention_mask=torch.ones_like(prompt_BT),
        max_new_tokens=request.max_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    ids = out.sequences[0, prompt_BT.shape[1] :].tolist()
    steps = zip(out.logits, ids, strict=True)
    return ids, sum(logits_BV[0].float().log_softmax(-1)[token].item() for logits_BV, token in steps)


def test_scores_equal_hugging_face(tiny_llama: Path, reference: Path, requests: list[Request]) -> None:
    model, checked = load(tiny_llama), 0
    for request, answer in zip(requests, read_answers(reference), strict=True):
        if request.score_ids and answer.error is None:
            with torch.no_grad():
                logits_V = model(torch.tensor([request.prompt_ids])).logits[0, -1]
            want = logits_V.log_softmax(-1)[list(request.score_ids)]
            torch.testing.assert_close(torch.tensor(answer.scores), want, atol=1e-4, rtol=0)
            assert len(answer.token_ids) == 1
            checked += 1
    assert checked == 25


def test_text_equals_hugging_face_on_a_real_model(smollm2: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(smollm2), load(smollm2)
    prompts = ["The capital of France is", "Movies like Toy Story:\n1.", "Once upon a time"]
    prompt_ids = [tuple(tokenizer(text).input_ids) for text in prompts]
    asked = [Request(ids, 12) for ids in prompt_ids] + [Request(prompt_ids[0], 12, stop=(".",))]
    answers = run_pass(SETTINGS, smollm2, asked, tmp_path / "out")
    for request, answer in zip(asked[:3], answers, strict=False):
        ids, logprob = greedy(model, request)
        assert list(answer.token_ids) == ids
        assert answer.logprob == pytest.approx(logprob, abs=1e-3)
        assert answer.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert answers[0].text.startswith(answers[3].text + ".")
    assert answers[3].finish_reason == "stop"


def test_text_equals_hugging_face_on_a_tiny_model(
    tiny_llama: Path, reference: Path, requests: list[Request]
) -> None:
    model, answers = load(tiny_llama), read_answers(reference)
    for i in range(len(FAULTY), len(FAULTY) + 8):
        ids, logprob = greedy(model, requests[i])
        assert list(answers[i].token_ids) == ids
        assert answers[i].logprob == pytest.approx(logprob, abs=1e-3)


def test_faulty_requests_are_kept_with_their_reason(reference: Path, requests: list[Request]) -> None:
    answers = read_answers(reference)
    said = ["empty", "vocabulary", "vocabulary", "256 tokens", "vocabulary"]
    for answer, reason in zip(answers, said, strict=False):
        assert reason in str(answer.error)
        assert answer.finish_reason == "refused"
    assert all(answer.error is None for answer in answers[len(FAULTY) :])
    assert read_manifest(reference, verify=True)["outcomes"]["refused"] == len(FAULTY)
    assert read_manifest(reference)["count"] == len(requests) - 2


def test_finished_pass_returns_at_once(
    tiny_llama: Path, reference: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_supervisor, "supervise", None)  # any worker start would fail
    before = file_sha256(reference / "manifest.json")
    assert run_pass(SETTINGS, tiny_llama, requests, reference) == read_answers(reference)
    assert file_sha256(reference / "manifest.json") == before


def start_command(model: Path, asked: Path, out: Path) -> subprocess.Popen[str]:
    given = SETTINGS.model_dump().items()
    flags = [part for name, value in given for part in ("--" + name.replace("_", "-"), str(value))]
    command = [
        sys.executable,
        bulk.__file__,
        "--model",
        str(model),
        "--requests",
        str(asked),
        "--out",
        str(out),
    ]
    return subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Poll until the condition holds; the process must live meanwhile."""
    for _ in range(12_000):
        if value := condition():
            return value
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def chunks(out: Path) -> dict[Path, tuple[int, str]]:
    """Committed chunks with their time and content."""
    return {path: (path.stat().st_mtime_ns, file_sha256(path)) for path in sorted(out.glob("chunk-*.jsonl"))}


def worker_of(process: subprocess.Popen[str]) -> psutil.Process:
    (worker,) = psutil.Process(process.pid).children()
    return worker


def test_killed_anywhere_nothing_is_lost_or_repeated(
    tiny_llama: Path, reference: Path, requests: list[Request], tmp_path: Path
) -> None:
    asked, out = tmp_path / "asked.jsonl", tmp_path / "out"
    write_requests(asked, requests)
    first = start_command(tiny_llama, asked, out)
    wait_for(lambda: len(chunks(out)) >= 3, first)
    worker_of(first).kill()
    before = chunks(out)
    wait_for(lambda: len(chunks(out)) >= len(before) + 3, first)
    after = chunks(out)
    assert before.items() <= after.items()  # whole chunks were kept, not answered again
    worker = worker_of(first)
    first.kill()
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running()
    assert "killed by SIGKILL: it is started again" in first.communicate()[1]
    with pytest.raises(UserError, match="no complete bulk pass"):
        read_answers(out)
    kept = chunks(out)
    damaged = kept.popitem()[0]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    second = start_command(tiny_llama, asked, out)
    output, errors = second.communicate()
    assert second.returncode == 0, errors
    assert f"{damaged}: the chunk is damaged" in errors
    assert kept.items() <= chunks(out).items()
    assert damaged in chunks(out)
    assert read_answers(out) == read_answers(reference)
    assert [sha for _, sha in chunks(out).values()] == [sha for _, sha in chunks(reference).values()]
    assert f"{len(requests)} answers" in output


def test_interrupt_ends_both_processes(tiny_llama: Path, tmp_path: Path) -> None:
    asked, out = tmp_path / "asked.jsonl", tmp_path / "out"
    write_requests(asked, [Request((3,), 4)])
    process = start_command(tiny_llama, asked, out)
    wait_for(lambda: (tmp_path / "out.log").is_file() and (tmp_path / "out.log").stat().st_size, process)
    worker = worker_of(process)
    process.send_signal(signal.SIGINT)
    assert "Interrupted" in process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert not worker.is_running()


def make_model(folder: Path, weights: bytes = b"1") -> Path:
    """Files that look like a model to everything but vLLM."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def fake_answer(request: Request) -> Answer:
    return Answer(request.key, "x", (1,), 0.0, (), "stop", None, request.meta)


WORKER = "import sys,time,os,signal\nfrom multiprocessing.connection import Connection\n" + (
    "pipe = Connection(int(sys.argv[1]), readable=False)\n"
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
    settings = BulkSettings(max_restarts=2, stall_seconds=0.3)
    store = BulkStore.prepare(tmp_path / "out", make_model(tmp_path / "m"), settings, [Request((1,), 1)])
    count = "open('starts', 'a').write('x')\n"
    with open(tmp_path / "log", "wb") as log_file, pytest.raises(UserError, match="0 of 1") as caught:
        program = WORKER + count.replace("starts", str(tmp_path / "starts")) + script
        supervise(store, [sys.executable, "-c", program], {}, log_file)
    assert said in str(caught.value)
    assert (tmp_path / "starts").read_text() == "x" * starts


class FailingEngine:
    """Ends each request with 'error' the first `failures` times."""

    vocab_size, max_model_len = 10, 10

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


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=3), st.integers(0, 2)), max_size=30),
    st.integers(1, 5),
)
def test_chunks_hold_one_kind_in_prefix_order(rows: list[tuple[list[int], int]], size: int) -> None:
    asked = [Request(tuple(ids), 1, score_ids=(1,) * n, meta={"i": i}) for i, (ids, n) in enumerate(rows)]
    planned = list(plan_chunks(asked, size))
    assert sorted(r.key for chunk in planned for r in chunk) == sorted(r.key for r in asked)
    for chunk in planned:
        assert 1 <= len(chunk) <= size
        assert len({len(r.score_ids) for r in chunk}) == 1
        assert chunk == sorted(chunk, key=lambda r: (r.prompt_ids, r.key))


def test_changed_inputs_drop_old_answers_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, model, asked = tmp_path / "out", make_model(tmp_path / "m"), [Request((1,), 1), Request((2,), 1)]

    def prepare(settings: BulkSettings, requests: list[Request]) -> list[str]:
        store = BulkStore.prepare(out, model, settings, requests)
        kept = sorted(store.committed())
        for path, chunk in store.todo():
            write_chunk(path, [fake_answer(request) for request in chunk])
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
