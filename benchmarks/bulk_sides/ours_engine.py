"""RecLoom's bulk engine (launcher/bulk.py): prompts in prefix order, chunk by chunk, small cache blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from work import Measured, Work, leave

from recloom.launcher.bulk import Engine, answer_chunk
from recloom.launcher.bulk_store import plan_chunks
from recloom.trainer.requests import Answer, BulkSettings, Request


class Counting(Engine):
    """Counts the tokens that the prefix cache did not have."""

    computed = 0

    def outputs(self, stepped: Callable[[], None]) -> Iterator[Any]:
        for output in super().outputs(stepped):
            self.computed += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
            yield output


def ask(engine: Engine, settings: BulkSettings, requests: list[Request]) -> dict[str, Answer]:
    chunks = plan_chunks(requests, settings.chunk_size)
    return {answer.key: answer for chunk in chunks for answer in answer_chunk(engine, chunk, lambda _: None)}


def main() -> None:
    work = Work.read()
    begin = time.perf_counter()
    settings = BulkSettings(dtype=work.dtype, max_model_len=work.longest, threads=work.threads)
    engine = Counting(Path(work.model), settings, False, False)
    warm, requests = (
        [
            Request(tuple(prompt), 1, score_ids=tuple(work.labels), meta={"n": n})
            for n, prompt in enumerate(prompts)
        ]
        for prompts in (work.warm, work.prompts)
    )
    started = time.perf_counter() - begin
    ask(engine, settings, warm)
    engine.computed, begin = 0, time.perf_counter()
    answers = ask(engine, settings, requests)
    seconds = time.perf_counter() - begin
    logprobs = [list(answers[request.key].scores) for request in requests]
    Measured(seconds, started, engine.computed, logprobs).write(work)
    leave()


main()
