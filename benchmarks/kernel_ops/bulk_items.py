"""Catalogue items from vLLM: our trie as its logits processor against its structured outputs with `choice`.

Both answer the same prompts greedily in one engine. vLLM compiles a list of titles once (`compile_s` in the
notes, not in the times) and constrains text, ours constrains tokens; so titles may differ where a title has
several spellings in tokens, and the check asks for titles only.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kernel_ops.case import Case
from kernel_ops.titles import read_titles
from transformers import AutoTokenizer

from recloom.data_shards.artifacts import cache_dir
from recloom.kernels.trie_build import trie_of
from recloom.launcher.bulk import Engine
from recloom.trainer.models import smollm2_folder
from recloom.trainer.requests import BulkSettings, Catalogue, Request

PROMPTS = 16
SIZES = (1_000, 5_000)
MAX_TOKENS = 80


def cases(device: str, data: Path) -> Iterator[Case]:
    folder = smollm2_folder(cache_dir())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    titles = sorted({title.strip() for title in read_titles(data)})
    ids = tokenizer(titles, add_special_tokens=False)["input_ids"]
    titles = [title for title, one in zip(titles, ids, strict=True) if len(one) < MAX_TOKENS]
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # as the bulk pass's worker has it
    engine = Engine(
        folder, BulkSettings(max_model_len=512, kv_cache_gb=0.5, threads=1), soft=False, embed=False
    )
    prompts = [
        tuple(
            tokenizer("I liked:\n" + "\n".join(titles[n : n + 400 : 80]) + "\nNext I will like:\n")[
                "input_ids"
            ]
        )
        for n in range(PROMPTS)
    ]
    with tempfile.TemporaryDirectory() as work:
        for size in SIZES:
            chosen = titles[:: len(titles) // size][:size]
            yield case(engine, tokenizer, prompts, chosen, Path(work))


def case(
    engine: Engine, tokenizer: Any, prompts: list[tuple[int, ...]], titles: list[str], work: Path
) -> Case:
    ids = tokenizer(titles, add_special_tokens=False)["input_ids"]
    path = work / f"{len(titles)}.trie"
    trie_of(ids, end_token=tokenizer.eos_token_id, vocab_size=len(tokenizer)).save(path)
    requests = [Request(prompt, MAX_TOKENS, catalogue=Catalogue(str(path))) for prompt in prompts]
    theirs = structured(engine, prompts, titles)

    def mine() -> list[str]:
        return [answer.text for answer in engine.answer(requests, lambda _: None).values()]

    def check() -> None:
        for said in mine():
            assert said in titles, said
        for said in theirs():  # a spelling in more tokens than usual may be cut
            assert any(title.startswith(said) for title in titles), said

    begin = time.perf_counter()
    theirs()
    labels = {"compile_s": f"{time.perf_counter() - begin:.1f}"}
    shape = f"prompts={len(prompts)} items={len(titles)} SmolLM2-135M"
    return Case("bulk items", "vLLM choice", shape, "bfloat16", mine, theirs, check, 0, labels)


def structured(engine: Engine, prompts: list[tuple[int, ...]], titles: list[str]) -> Callable[[], list[str]]:
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    numbers = itertools.count()

    def run() -> list[str]:
        engine.engine.reset_prefix_cache()
        for prompt in prompts:
            params = SamplingParams(
                temperature=0,
                max_tokens=MAX_TOKENS,
                structured_outputs=StructuredOutputsParams(choice=titles),
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.engine.add_request(f"choice-{next(numbers)}", tokens_input(list(prompt)), params)
        return [output.outputs[0].text for output in engine.outputs(lambda: None)]

    return run
