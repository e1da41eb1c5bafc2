"""The bulk pass against Hugging Face, and killed, damaged and misused in every way."""

from __future__ import annotations

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

from recloom.data_shards.artifacts import file_sha256, read_manifest
from recloom.data_shards.errors import UserError
from recloom.launcher import bulk, bulk_supervisor
from recloom.launcher.bulk import run_pass
from recloom.launcher.bulk_claims import Chains, host_name
from recloom.launcher.bulk_plan import CLAIMS, current, work_folder
from recloom.trainer.requests import BulkSettings, Request, read_answers, write_requests

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


def start_command(model: Path, asked: Path, out: Path, **changes: int) -> subprocess.Popen[str]:
    given = (SETTINGS.model_dump() | changes).items()
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
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *flags], preexec_fn=heed_interrupts, **pipes)


def heed_interrupts() -> None:
    """As from a terminal: a shell's background job, which CI may be, starts deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Poll until the condition holds; the process must live meanwhile."""
    for _ in range(30_000):
        if value := condition():
            return value
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
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


def holders(out: Path) -> list[str]:
    """The owners that hold a chunk of the pass which runs."""
    plan = current(work_folder(out))
    if plan is None:
        return []
    missing = [plan.chunks[number][0] for number in plan.missing(out)]
    states = Chains(plan.folder / CLAIMS, "").states(missing).values()
    return [state.owner for state in states if state.owner is not None]


def test_an_engine_of_two_is_killed(
    tiny_llama: Path, reference: Path, requests: list[Request], tmp_path: Path
) -> None:
    asked, out = tmp_path / "asked.jsonl", tmp_path / "out"
    write_requests(asked, requests)
    process = start_command(tiny_llama, asked, out, engines=2)
    held = wait_for(lambda: len(chunks(out)) >= 2 and holders(out), process)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    (victim,) = [worker for worker in workers if held[0] in worker.cmdline()]
    victim.kill()
    before = chunks(out)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "was killed by SIGKILL: it is started again" in errors
    assert before.items() <= chunks(out).items()
    assert read_answers(out) == read_answers(reference)
    assert [sha for _, sha in chunks(out).values()] == [sha for _, sha in chunks(reference).values()]
    assert f"{len(requests)} answers" in output
    assert not work_folder(out).exists()


def test_interrupt_ends_both_processes(tiny_llama: Path, tmp_path: Path) -> None:
    asked, out = tmp_path / "asked.jsonl", tmp_path / "out"
    write_requests(asked, [Request((3,), 4)])
    process = start_command(tiny_llama, asked, out)
    log = tmp_path / f"out.{host_name()}.log"
    wait_for(lambda: log.is_file() and log.stat().st_size, process)
    worker = worker_of(process)
    process.send_signal(signal.SIGINT)
    assert "Interrupted" in process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert not worker.is_running()
