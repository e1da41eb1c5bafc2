"""vLLM as documented, prefix caching on: `call` = one generate a candidate, `all` = one for all."""

from __future__ import annotations

import sys
import time
from typing import Any

from work import Measured, Work, leave

CACHE_BYTES = 2 * 2**30


def main() -> None:
    work = Work.read()
    begin = time.perf_counter()
    import torch
    from vllm import LLM, SamplingParams

    # On a CPU it would take nearly all memory, and compile for a minute to gain 3 % (measured by hand).
    cpu: dict[str, Any] = {"kv_cache_memory_bytes": CACHE_BYTES, "enforce_eager": True}
    machine = {} if torch.cuda.is_available() else cpu
    dtype: Any = work.dtype
    llm: Any = LLM(
        model=work.model, dtype=dtype, enable_prefix_caching=True, max_model_len=work.longest, **machine
    )
    params = SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=work.labels, detokenize=False)

    def ask(prompts: list[list[int]]) -> list[Any]:
        batches = [[prompt] for prompt in prompts] if sys.argv[-2] == "call" else [prompts]
        found: list[Any] = []
        for batch in batches:
            inputs = [{"prompt_token_ids": prompt} for prompt in batch]
            found += llm.generate(inputs, params, use_tqdm=False)
        return found

    started = time.perf_counter() - begin
    ask(work.warm)
    begin = work.begin()
    found = ask(work.prompts)
    seconds = time.perf_counter() - begin
    logprobs = [[one.outputs[0].logprobs[0][label].logprob for label in work.labels] for one in found]
    computed = sum(len(one.prompt_token_ids) - (one.num_cached_tokens or 0) for one in found)
    Measured(seconds, started, computed, logprobs).write(work)
    leave()


main()
