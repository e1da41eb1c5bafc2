"""A resumable bulk pass of a language model: requests in, one committed answer each.

    python launcher/bulk.py --model DIR --requests FILE --out DIR

`run_pass` is the same as a function. This file is the command and the worker; the worker is the
only place where vLLM is imported.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from recloom.data_shards.errors import UserError
from recloom.launcher.bulk_store import BulkStore, write_chunk
from recloom.launcher.bulk_supervisor import cpu_build, run_pass
from recloom.trainer.requests import Answer, BulkSettings, Request, read_requests

__all__ = ["main", "run_pass"]

MAX_SCORE_IDS = 128  # vLLM's limit of logprob_token_ids
DONE = ("stop", "length")
HEARTBEAT_SECONDS = 1.0


def main(arguments: list[str] | None = None) -> int:
    options = vars(parser().parse_args(arguments))
    if options["worker"]:
        return work(options["worker"], options["parent"], Connection(options["pipe"], readable=False))
    try:
        given = {name: options[name] for name in BulkSettings.model_fields if options[name] is not None}
        requests = read_requests(options["requests"])
        answers = run_pass(read_settings(given), options["model"], requests, options["out"])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from the last chunk.", file=sys.stderr)
        return 130
    counts = Counter(answer.finish_reason for answer in answers)
    print(
        f"{len(answers)} answers in {options['out']}:", ", ".join(f"{n} {name}" for name, n in counts.items())
    )
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="Answer all requests of a file with a language model.")
    made.add_argument("--model", type=Path, help="Hugging Face model folder")
    made.add_argument("--requests", type=Path, help="file made by write_requests")
    made.add_argument("--out", type=Path, help="folder of the answers; a second run goes on there")
    for name, field in BulkSettings.model_fields.items():
        made.add_argument(
            "--" + name.replace("_", "-"), help=f"{field.description} Default: {field.default}."
        )
    for name, kind in (("--worker", Path), ("--parent", int), ("--pipe", int)):
        made.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return made


def read_settings(given: dict[str, str]) -> BulkSettings:
    try:
        return BulkSettings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = (f"--{e['loc'][0]} = '{e['input']}': {e['msg']}".replace("_", "-") for e in error.errors())
        raise UserError("\n".join(problems)) from None


def work(out: Path, parent: int, pipe: Connection) -> int:
    """The worker: answers and commits chunk after chunk, reports to the supervisor."""
    os.set_inheritable(pipe.fileno(), False)
    die_with(parent)
    try:
        store = BulkStore.reopen(out)
        answer_all(store, Engine(store), Reporter(pipe))
    except Exception as error:
        traceback.print_exc()
        pipe.send({"error": f"failed with {type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        return 1
    sys.stdout.flush()
    os._exit(0)  # everything is committed; the engine's own shutdown could only hang


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the supervisor dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit("The supervisor is gone.")


class Reporter:
    """Tells the supervisor how many requests are answered, at most once a second."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.committed = 0
        self.last = 0.0
        self.answered(0)

    def answered(self, in_chunk: int) -> None:
        if time.monotonic() - self.last >= HEARTBEAT_SECONDS:
            self.last = time.monotonic()
            self.pipe.send({"answered": self.committed + in_chunk})

    def commit(self, count: int) -> None:
        self.committed += count
        self.pipe.send({"answered": self.committed})


def answer_all(store: BulkStore, engine: Engine, reporter: Reporter) -> None:
    for path, chunk in store.todo():
        answers = answer_chunk(engine, chunk, reporter.answered)
        write_chunk(path, answers)
        reporter.commit(len(chunk))


def answer_chunk(engine: Engine, chunk: list[Request], progress: Callable[[int], None]) -> list[Answer]:
    """One answer a request, in the chunk's order; what the engine fails on is asked a second time."""
    answers = {}
    for request in chunk:
        fault = find_fault(request, engine.vocab_size, engine.max_model_len)
        if fault:
            answers[request.key] = refused(request, fault)
    for _ in range(2):
        todo = [
            r for r in chunk if r.key not in answers or answers[r.key].finish_reason not in (*DONE, "refused")
        ]
        answers |= engine.answer(todo, progress)
    if len(answers) != len(chunk):
        raise RuntimeError(f"{len(answers)} answers to {len(chunk)} requests")
    return [answers[request.key] for request in chunk]


def find_fault(request: Request, vocab_size: int, max_model_len: int) -> str | None:
    """Why the engine must never see this request; one such request would end the whole call."""
    ids = (*request.prompt_ids, *request.score_ids)
    if not request.prompt_ids:
        return "the prompt is empty"
    if min(ids) < 0 or max(ids) >= vocab_size:
        return f"token ids from {min(ids)} to {max(ids)}, the vocabulary has {vocab_size}"
    if len(request.prompt_ids) >= max_model_len:
        return f"the prompt has {len(request.prompt_ids)} tokens, prompt and answer may have {max_model_len}"
    if request.max_tokens < 1 or (request.score_ids and request.max_tokens != 1):
        return f"max_tokens = {request.max_tokens}: at least 1, and exactly 1 for scoring"
    if len(request.score_ids) > MAX_SCORE_IDS:
        return f"{len(request.score_ids)} score ids, the limit is {MAX_SCORE_IDS}"
    return None


def refused(request: Request, fault: str) -> Answer:
    return Answer(request.key, "", (), 0.0, (), "refused", fault, request.meta)


class Engine:
    """vLLM on one model, in this process. An exception from it leaves it unusable: end the process."""

    def __init__(self, store: BulkStore) -> None:
        from vllm import LLM

        settings = store.settings
        memory: dict[str, Any] = {"gpu_memory_utilization": settings.gpu_memory_utilization}
        if cpu_build():
            memory = {"kv_cache_memory_bytes": int(settings.kv_cache_gb * 2**30)}
        llm = LLM(
            model=str(store.model),
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            block_size=settings.block_size,
            enable_prefix_caching=True,
            enforce_eager=True,
            seed=0,
            **memory,
        )
        self.engine = llm.llm_engine
        self.vocab_size: int = self.engine.model_config.get_vocab_size()
        self.max_model_len: int = self.engine.model_config.max_model_len

    def answer(self, requests: Iterable[Request], progress: Callable[[int], None]) -> dict[str, Answer]:
        """Answers by key, greedy; `progress` is called after every step with the number so far."""
        asked = {request.key: request for request in requests}
        answers = {}
        for request in asked.values():
            try:
                self.engine.add_request(
                    request.key, {"prompt_token_ids": list(request.prompt_ids)}, sampling(request)
                )
            except ValueError as error:
                answers[request.key] = refused(request, str(error))
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.finished:
                    answers[output.request_id] = make_answer(asked[output.request_id], output.outputs[0])
            progress(len(answers))
        return answers


def sampling(request: Request) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    last = RequestOutputKind.FINAL_ONLY
    if request.score_ids:
        ids = list(request.score_ids)
        return SamplingParams(
            temperature=0, max_tokens=1, logprob_token_ids=ids, detokenize=False, output_kind=last
        )
    stop = list(request.stop)
    return SamplingParams(
        temperature=0, max_tokens=request.max_tokens, stop=stop, logprobs=0, output_kind=last
    )


def make_answer(request: Request, output: Any) -> Answer:
    """From vLLM's completion; anything but a normal end is an error, its partial text is kept."""
    reason = str(output.finish_reason)
    scores = tuple(output.logprobs[0][token].logprob for token in request.score_ids)
    return Answer(
        key=request.key,
        text=output.text,
        token_ids=tuple(output.token_ids),
        logprob=output.cumulative_logprob,
        scores=scores,
        finish_reason=reason,
        error=None if reason in DONE else f"the engine ended the request with '{reason}'",
        meta=request.meta,
    )


if __name__ == "__main__":
    sys.exit(main())
