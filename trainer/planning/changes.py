"""What to change so that training fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from recloom.trainer.parallel_layout import undivided
from recloom.trainer.planning.memory import GIB, Setup, host_bytes, training_memory

MAX_FACTOR = 64
RANKS_PER_NODE = 8


def fits(setup: Setup, usable: float) -> bool:
    return training_memory(setup).total <= usable


def fitting_changes(setup: Setup, usable: float) -> list[str]:
    """Settings of which any one makes it fit; where none does alone, the first few that do together."""
    alone = [text for text, changed in changes(setup) if fits(changed, usable)]
    alone += more_gpus(setup, usable)
    if alone:
        return alone
    texts = []
    while following := next(changes(setup), None):
        texts.append(following[0])
        setup = following[1]
        if fits(setup, usable):
            return [", ".join(texts)]
    return [", ".join([*texts, *(more_gpus(setup, usable) or ["a smaller model"])])]


def changes(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """Single changes, cheapest first."""
    if not setup.checkpointing:
        yield f"{setup.block}.gradient_checkpointing: true", replace(setup, checkpointing=True)
    if setup.row_tokens > setup.longest_prompt:
        answers = setup.answer_tokens * setup.longest_prompt // setup.row_tokens
        shorter = replace(setup, row_tokens=setup.longest_prompt, answer_tokens=answers)
        yield f"{setup.block}.pack_length: {setup.longest_prompt}", shorter
    divided = replace(setup, zero_stage=3)
    # On one rank ZeRO divides nothing, and in float32 it adds a second copy of the weights.
    if setup.zero_stage < 3 and training_memory(divided).total <= training_memory(setup).total:
        yield "parallel.zero_stage: 3", divided
    shared = replace(setup, tensor=2 * setup.tensor)
    if can_share(shared) and training_memory(shared).total <= training_memory(setup).total:
        yield f"parallel.tensor: {shared.tensor}", shared
    if not setup.offload and setup.zero_stage > 0:
        host = host_bytes(replace(setup, offload=True), min(setup.ranks, RANKS_PER_NODE))
        text = f"parallel.offload_optimizer: true (about {host / GIB:,.0f} GiB of main memory a node)"
        yield text, replace(setup, offload=True)


def can_share(setup: Setup) -> bool:
    """Whether a node's ranks can hold a model together in groups of this size."""
    if setup.hpz_size > 1 or RANKS_PER_NODE % setup.tensor or setup.ranks % setup.tensor:
        return False
    return undivided(setup.tensor, setup.model.heads, setup.model.kv_heads) is None


def more_gpus(setup: Setup, usable: float) -> list[str]:
    """The least power-of-two multiple of the GPUs that fits."""
    factor = 2
    while factor <= MAX_FACTOR:
        ranks = setup.ranks * factor
        if fits(replace(setup, ranks=ranks), usable):
            return [f"{ranks} GPUs ({setup.block}.rows_per_step: a multiple of {ranks // setup.tensor})"]
        factor *= 2
    return []
