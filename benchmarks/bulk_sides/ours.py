"""What both sides of RecLoom's share: the pass of launcher/bulk.py, in prefix order, chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from work import Measured, Work, leave

from recloom.launcher.bulk import answer_chunk
from recloom.launcher.bulk_store import plan_chunks
from recloom.trainer.requests import Answer, BulkSettings, Request


def requests_of(prompts: list[list[int]], labels: list[int]) -> list[Request]:
    return [
        Request(tuple(prompt), 1, score_ids=tuple(labels), meta={"n": n}) for n, prompt in enumerate(prompts)
    ]


def ask(engine: Any, settings: BulkSettings, requests: list[Request]) -> dict[str, Answer]:
    chunks = plan_chunks(requests, settings.chunk_size)
    return {answer.key: answer for chunk in chunks for answer in answer_chunk(engine, chunk, lambda _: None)}


def measure(make: Callable[[Work, BulkSettings], Any]) -> None:
    """make: an engine of the worker that counts `computed`, the tokens which went through the model."""
    work = Work.read()
    begin = time.perf_counter()
    settings = BulkSettings.model_validate(
        {"dtype": work.dtype, "max_model_len": work.longest, "threads": work.threads}
    )
    engine = make(work, settings)
    warm, requests = (requests_of(prompts, work.labels) for prompts in (work.warm, work.prompts))
    started = time.perf_counter() - begin
    ask(engine, settings, warm)
    engine.computed, begin = 0, work.begin()
    answers = ask(engine, settings, requests)
    seconds = time.perf_counter() - begin
    logprobs = [list(answers[request.key].scores) for request in requests]
    Measured(seconds, started, engine.computed, logprobs).write(work)
    leave()
