"""A resumable bulk pass of a language model: requests in, one committed answer each.

    python launcher/bulk.py --model DIR --requests FILE --out DIR

`run_pass` is the same as a function. This file is the command and the worker; the worker is the
only place where vLLM is imported.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from recloom.data_shards.errors import UserError, print_error
from recloom.kernels.trie_cursor import CursorBatch
from recloom.launcher.bulk_claims import Heartbeat, Witness
from recloom.launcher.bulk_embed import fault_of_embed, vector_answer
from recloom.launcher.bulk_engines import Reporter
from recloom.launcher.bulk_environment import cpu_build
from recloom.launcher.bulk_plan import Plan
from recloom.launcher.bulk_soft import SoftRows, fault_of_soft, mixed_prompt, token_ids
from recloom.launcher.bulk_store import BulkStore, in_one_pass
from recloom.launcher.bulk_supervisor import run_pass
from recloom.launcher.bulk_tries import (
    MAX_SCORE_IDS,
    EngineScorer,
    Questions,
    Tries,
    best_items,
    constraint_arguments,
    fault_of_constraint,
)
from recloom.launcher.bulk_work import WorkList
from recloom.launcher.processes import die_with_parent
from recloom.trainer.requests import Answer, BulkSettings, Request, read_requests

if TYPE_CHECKING:
    from recloom.launcher.bulk_scoring import Scorer

__all__ = ["main", "run_pass"]

ENDS = ("stop", "length", "refused")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--worker"]:  # how the supervisor starts this file
        out, plan, owner, pipe, parent = arguments[1:]
        return work(Path(out), Path(plan), owner, Connection(int(pipe), readable=False), int(parent))
    options = vars(parser().parse_args(arguments))
    try:
        settings = read_settings({k: options[k] for k in BulkSettings.model_fields if options[k] is not None})
        answers = run_pass(settings, options["model"], read_requests(options["requests"]), options["out"])
    except UserError as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print_error("Interrupted: the same command goes on from the last chunk.")
        return 130
    counts = Counter(answer.finish_reason for answer in answers)
    print(f"{len(answers)} answers in {options['out']}: {dict(counts)}")
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="Answer all requests of a file with a language model.")
    made.add_argument("--model", type=Path, required=True, help="Hugging Face model folder")
    made.add_argument("--requests", type=Path, required=True, help="file made by write_requests")
    made.add_argument(
        "--out", type=Path, required=True, help="folder of the answers; a second run goes on there"
    )
    for name, field in BulkSettings.model_fields.items():
        default = "" if field.default is None else f" Default: {field.default}."
        made.add_argument("--" + name.replace("_", "-"), help=f"{field.description}{default}")
    return made


def read_settings(given: dict[str, str]) -> BulkSettings:
    try:
        return BulkSettings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = (f"--{e['loc'][0]} = '{e['input']}': {e['msg']}".replace("_", "-") for e in error.errors())
        raise UserError("\n".join(problems)) from None


def work(out: Path, plan_folder: Path, owner: str, pipe: Connection, parent: int) -> int:
    """The worker: claims, answers and commits chunk after chunk, reports to the supervisor."""
    os.set_inheritable(pipe.fileno(), False)
    die_with_parent(parent)
    try:
        store, plan = BulkStore.reopen(out), Plan.read(plan_folder)
        witness = Witness(plan.alive, store.settings.lease_seconds)
        chunks = WorkList(plan, out, owner, witness, store.settings.max_restarts)
        with Heartbeat(plan.alive, owner):
            asked = store.requests()
            answer_all(chunks, asked, engine_for(store, asked), Reporter(pipe))
    except Exception as error:
        traceback.print_exc()
        pipe.send({"error": f"failed with {type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        return 1
    sys.stdout.flush()
    os._exit(0)  # everything is committed; the engine's own shutdown could only hang


def engine_for(store: BulkStore, asked: list[Request]) -> Engine | Scorer:
    """vLLM, or what takes its place for a pass that only scores."""
    if in_one_pass(store.settings, asked):
        # Not above: vLLM looks through everything imported for kernels of its own, and stumbles over ours.
        from recloom.launcher.bulk_scoring import Scorer

        return Scorer(store.model, store.settings)
    soft, embed = any(r.soft is not None for r in asked), any(r.embed for r in asked)
    return Engine(store.model, store.settings, soft, embed)


def answer_all(chunks: WorkList, asked: list[Request], engine: Engine | Scorer, reporter: Reporter) -> None:
    reporter.begin("")
    for number in chunks.claims(reporter.idle):
        name, places = chunks.plan.chunks[number]
        reporter.begin(name)
        chunks.commit(number, answer_chunk(engine, [asked[n] for n in places], reporter.answered))
        reporter.commit()


def answer_chunk(
    engine: Engine | Scorer, chunk: list[Request], progress: Callable[[int], None]
) -> list[Answer]:
    """One answer a request, in the chunk's order; what the engine fails on is asked a second time."""
    faults = {request.key: fault_for(engine, request) for request in chunk}
    answers = {r.key: refused(r, fault) for r in chunk if (fault := faults[r.key])}
    answers |= engine.answer([request for request in chunk if not faults[request.key]], progress)
    failed = [request for request in chunk if answers[request.key].finish_reason not in ENDS]
    answers |= engine.answer(failed, progress)
    return [answers[request.key] for request in chunk]


def fault_for(engine: Engine | Scorer, request: Request) -> str | None:
    """Why this engine must not see the request; None when it may."""
    limits = (engine.vocab_size, engine.max_model_len)
    fault = find_fault(request, *limits)
    if request.soft is not None:
        fault = fault or fault_of_soft(request.soft, len(request.prompt_ids), engine.soft_rows)
    return fault or fault_of_constraint(request, engine.tries, *limits)


def find_fault(request: Request, vocab_size: int, max_model_len: int) -> str | None:
    """Why the engine must never see this request; one such request would end the whole call."""
    ids = (*token_ids(request), *request.score_ids)
    if not request.prompt_ids:
        return "the prompt is empty"
    if min(ids) < 0 or max(ids) >= vocab_size:
        return f"token ids from {min(ids)} to {max(ids)}, the vocabulary has {vocab_size}"
    if len(request.prompt_ids) + (not request.embed) > max_model_len:
        return f"the prompt has {len(request.prompt_ids)} tokens, prompt and answer may have {max_model_len}"
    if request.embed:
        return fault_of_embed(request)
    if request.max_tokens < 1 or (request.score_ids and request.max_tokens != 1):
        return f"max_tokens = {request.max_tokens}: at least 1, and exactly 1 for scoring"
    if len(request.score_ids) > MAX_SCORE_IDS:
        return f"{len(request.score_ids)} score ids, the limit is {MAX_SCORE_IDS}"
    return None


def refused(request: Request, fault: str) -> Answer:
    return Answer(request.key, "", (), 0.0, (), "refused", fault, request.meta)


class Engine:
    """vLLM on one model, in this process. An exception from it leaves it unusable: end the process.

    soft: whether the pass has soft prompts. All prompts of such a pass enter the model as embeddings.
    embed: whether the pass asks for vectors; such an engine gives nothing else.
    """

    def __init__(self, model: Path, settings: BulkSettings, soft: bool, embed: bool) -> None:
        from vllm import LLM

        self.tries = Tries()
        task: dict[str, Any] = pooling() if embed else {"logits_processors": [trie_processor(self.tries)]}
        memory: dict[str, Any] = {"gpu_memory_utilization": settings.gpu_memory_utilization}
        if cpu_build():
            memory = {"kv_cache_memory_bytes": int(settings.kv_cache_gb * 2**30)}
        llm = LLM(
            model=str(model),
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            block_size=settings.block_size,
            enable_prefix_caching=True,
            enable_prompt_embeds=soft,
            enforce_eager=True,
            seed=0,
            **task,
            **memory,
        )
        self.engine = llm.llm_engine
        config: Any = self.engine.model_config
        self.vocab_size: int = config.get_vocab_size()
        self.max_model_len: int = config.max_model_len
        self.soft_rows = SoftRows(config.get_inputs_embeds_size(), config.dtype)

    def answer(self, requests: list[Request], progress: Callable[[int], None]) -> dict[str, Answer]:
        """Answers by key, greedy; `progress` is called after every step with the number so far.

        The prefix cache starts empty: what it held could shift the last bits of the result, and a
        pass that was interrupted must end with the answers of one that was not.
        """
        self.engine.reset_prefix_cache()
        asked = {request.key: request for request in requests if not searches(request)}
        answers = {key: fault for key, request in asked.items() if (fault := self.submit(request))}
        for output in self.outputs(lambda: progress(len(answers))):
            answers[output.request_id] = self.read(asked[output.request_id], output.outputs)
        if answers.keys() != asked.keys():
            raise RuntimeError(f"vLLM returned {len(answers)} answers to {len(asked)} requests")
        beams = [request for request in requests if searches(request)]
        ask = partial(self.next_logprobs, stepped=lambda: progress(len(answers)))
        return answers | best_items(EngineScorer(ask), self.tries, beams)

    def read(self, request: Request, outputs: Any) -> Answer:
        if request.embed:
            return vector_answer(request, outputs.data)
        items = self.tries.items_of(request, outputs[0].token_ids) if request.catalogue else ()
        return make_answer(request, outputs[0], items)

    def outputs(self, stepped: Callable[[], None]) -> Iterator[Any]:
        """What is finished, as it comes, until nothing is left; `stepped` is called after every step."""
        while self.engine.has_unfinished_requests():
            step: Any = self.engine.step()
            yield from (output for output in step if output.finished)
            stepped()

    def next_logprobs(self, questions: Questions, stepped: Callable[[], None]) -> list[list[float]]:
        """For each (text, at most MAX_SCORE_IDS tokens) the log-probability of each token behind the text."""
        asked = [
            Request(text, 1, score_ids=tokens, meta={"question": number}, soft=soft)
            for number, (text, tokens, soft) in enumerate(questions)
        ]
        for request in asked:
            if fault := self.submit(request):
                raise RuntimeError(f"vLLM refused a step of a beam search: {fault.error}")
        found = {output.request_id: output.outputs[0].logprobs[0] for output in self.outputs(stepped)}
        return [[found[request.key][token].logprob for token in request.score_ids] for request in asked]

    def submit(self, request: Request) -> Answer | None:
        """Queue a request; an answer at once when vLLM refuses it for a reason of its own."""
        from vllm.exceptions import VLLMClientError

        try:
            self.engine.add_request(request.key, self.prompt(request), sampling(request))
        except (ValueError, VLLMClientError) as error:
            return refused(request, str(error))
        return None

    def prompt(self, request: Request) -> Any:
        from vllm.inputs.engine import embeds_input, tokens_input

        if request.soft is None:
            return tokens_input(list(request.prompt_ids))
        return embeds_input(**mixed_prompt(request, request.soft, self.soft_rows))


def searches(request: Request) -> bool:
    return request.catalogue is not None and request.catalogue.num_beams > 1


def pooling() -> dict[str, Any]:
    """vLLM gives the last position's state behind the final norm; its activation would normalise it."""
    from vllm.config import PoolerConfig

    pooler = PoolerConfig(seq_pooling_type="LAST", use_activation=False)
    return {"runner": "pooling", "convert": "embed", "pooler_config": pooler}


def trie_processor(tries: Tries) -> type:
    """vLLM's hook (V1) that holds constrained requests to what their tries spell."""
    from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

    class TrieProcessor(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            self.batch = CursorBatch()

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: BatchUpdate | None) -> None:
            if batch_update is None:
                return
            for row in batch_update.removed:
                self.batch.remove(row)
            for row, params, _, generated in batch_update.added:
                self.batch.add(row, tries.cursor(params.extra_args or {}), generated)
            for source, target, direction in batch_update.moved:
                self.batch.move(source, target, direction == MoveDirectionality.SWAP)

        def apply(self, logits: Any) -> Any:
            return self.batch.mask(logits)

    return TrieProcessor


def sampling(request: Request) -> Any:
    """vLLM's parameters: a vector, greedy text with its log-probability, or those of given ids exactly."""
    from vllm import PoolingParams, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    if request.embed:
        return PoolingParams(task="embed")
    common: dict[str, Any] = {"temperature": 0, "output_kind": RequestOutputKind.FINAL_ONLY}
    if request.score_ids:
        ids = list(request.score_ids)
        return SamplingParams(max_tokens=1, logprob_token_ids=ids, detokenize=False, **common)
    return SamplingParams(
        max_tokens=request.max_tokens,
        stop=list(request.stop),
        logprobs=0,
        extra_args=constraint_arguments(request),
        **common,
    )


def make_answer(request: Request, output: Any, items: tuple[int, ...] = ()) -> Answer:
    """From vLLM's completion; anything but a normal end is an error, its partial text is kept."""
    reason = str(output.finish_reason)
    whole = reason in ENDS
    named = items if whole else ()
    scores = tuple(output.logprobs[0][token].logprob for token in request.score_ids) if whole else ()
    return Answer(
        key=request.key,
        text=output.text,
        token_ids=tuple(output.token_ids),
        logprob=output.cumulative_logprob or 0.0,
        scores=scores or (output.cumulative_logprob,) * len(named),
        finish_reason=reason,
        error=None if whole else f"the engine ended the request with '{reason}'",
        meta=request.meta,
        items=named,
    )


if __name__ == "__main__":
    sys.exit(main())
