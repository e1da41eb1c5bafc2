"""The stream: nothing lost or repeated, one order at any world size, exact resume, the same loss packed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.data_shards.errors import UserError
from recloom.data_shards.packing import block_causal_mask, pack_window
from recloom.data_shards.renderer import SlotPosition
from recloom.data_shards.stream import IGNORE, PackedRow, PackedStream, StepBatch, build_row

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
CAPACITY = 64


@dataclass
class MemorySource:
    """Samples in memory; token t of sample k is k * 1000 + t, so that every token says where it is from."""

    lengths_N: np.ndarray
    num_prompt_N: np.ndarray
    num_read: int = 0
    has_slots: bool = False

    def slots(self, index: int) -> list[SlotPosition]:
        """One slot in every sample, at its second token."""
        return [(1, "history", index)]

    def ids(self, index: int) -> np.ndarray:
        self.num_read += 1
        return (index * 1000 + np.arange(self.lengths_N[index])).astype(np.int32)


def make_source(lengths: list[int]) -> MemorySource:
    lengths_N = np.asarray(lengths, dtype=np.int32)
    return MemorySource(lengths_N, (lengths_N * 2 // 3).astype(np.int32))


def make_stream(source: MemorySource, rank: int = 0, world_size: int = 1, **options: int) -> PackedStream:
    values = {"capacity": CAPACITY, "rows_per_step": 4, "window": 16, "seed": 3, **options}
    return PackedStream(source, rank=rank, world_size=world_size, **values)


def global_rows(
    source: MemorySource, world_size: int, num_epochs: int = 1, **options: int
) -> list[list[list[int]]]:
    """Sample indices of every step's rows, put together from all ranks."""
    streams = [make_stream(source, rank, world_size, **options) for rank in range(world_size)]
    steps: list[list[list[int]]] = []
    for _ in range(num_epochs):
        for batches in zip(*streams, strict=True):
            steps.append(join_ranks(batches))
    return steps


def join_ranks(batches: tuple[StepBatch, ...]) -> list[list[int]]:
    """Rank r holds rows r, r + W, ...: interleave them again."""
    assert len({(b.step, b.epoch, b.num_answer_tokens, tuple(b.sample_ids)) for b in batches}) == 1
    assert len({len(b.rows) for b in batches}) == 1
    return [row.sample_indices for rows in zip(*(b.rows for b in batches), strict=True) for row in rows]


LENGTHS = st.lists(st.integers(1, CAPACITY + 10), min_size=1, max_size=70)


@SETTINGS
@given(
    lengths=LENGTHS, world_size=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99), window=st.integers(1, 30)
)
def test_an_epoch_holds_every_sample_once(
    lengths: list[int], world_size: int, seed: int, window: int
) -> None:
    source = make_source(lengths)
    steps = global_rows(source, world_size, seed=seed, window=window)
    seen = Counter(index for step in steps for row in step for index in row)
    assert seen == Counter(range(len(lengths)))
    assert len(steps) == make_stream(source, seed=seed, window=window).num_steps(0)
    assert all(len(step) == 4 for step in steps)
    assert all(any(step) for step in steps), "no step is all empty"


@SETTINGS
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_the_global_order_is_the_same_at_any_world_size(lengths: list[int], seed: int) -> None:
    source = make_source(lengths)
    one = global_rows(source, 1, num_epochs=2, seed=seed)
    assert (
        one
        == global_rows(source, 2, num_epochs=2, seed=seed)
        == global_rows(source, 4, num_epochs=2, seed=seed)
    )


@SETTINGS
@given(lengths=LENGTHS, stop=st.integers(0, 40), worlds=st.permutations([1, 2, 4]), seed=st.integers(0, 99))
def test_resume_at_any_step_and_world_size(
    lengths: list[int], stop: int, worlds: list[int], seed: int
) -> None:
    source = make_source(lengths)
    want = global_rows(source, worlds[0], num_epochs=3, seed=seed)
    stop %= len(want)
    first = make_stream(source, 0, worlds[0], seed=seed)
    taken = 0
    while taken < stop:
        for _ in first:
            taken += 1
            if taken == stop:
                break
    streams = [make_stream(source, rank, worlds[1], seed=seed) for rank in range(worlds[1])]
    for stream in streams:
        stream.load_state(first.state())
        assert stream.state() == first.state()
    rest = []
    while streams[0].epoch < 3:
        rest += [join_ranks(batches) for batches in zip(*streams, strict=True)]
    assert rest == want[stop:]


def test_resume_reads_and_packs_nothing_before_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from recloom.data_shards import stream as module

    source = make_source(np.random.default_rng(0).integers(5, 40, 400).tolist())
    stream = make_stream(source)
    for _ in range(20):
        next(iter(stream))
    calls: list[int] = []
    source.num_read = 0
    monkeypatch.setattr(module, "pack_window", lambda *args: calls.append(1) or pack_window(*args))
    again = make_stream(source)
    again.load_state(stream.state())
    batch = next(iter(again))
    assert len(calls) <= 2 and source.num_read == len(batch.sample_ids)
    assert (batch.epoch, batch.step) == (0, 20)


def test_epochs_and_seeds_give_other_orders() -> None:
    source = make_source(np.random.default_rng(0).integers(5, 40, 100).tolist())
    num_steps = make_stream(source).num_steps(0)
    first, second = (lambda steps: (steps[:num_steps], steps[num_steps:]))(
        global_rows(source, 1, num_epochs=2)
    )
    assert first != second and first != global_rows(source, 1, seed=4)
    assert first == global_rows(source, 1)
    assert make_stream(source).num_steps(1) == len(second)


@SETTINGS
@given(lengths=LENGTHS, part=st.integers(1, 80), world_size=st.sampled_from([1, 2, 4]))
def test_short_epochs_share_out_a_pass(lengths: list[int], part: int, world_size: int) -> None:
    """Together they hold every sample once; the next pass has another order; a resumed one goes on."""
    source, count = make_source(lengths), -(-len(lengths) // part)
    steps = global_rows(source, world_size, num_epochs=2 * count, epoch_samples=part)
    stream = make_stream(source, epoch_samples=part)
    first = sum(stream.num_steps(epoch) for epoch in range(count))
    for whole in (steps[:first], steps[first:]):
        assert Counter(k for step in whole for row in step for k in row) == Counter(range(len(lengths)))
    sizes = [len([k for batch in stream for k in batch.sample_ids]) for _ in range(2 * count)]
    assert max(sizes) <= part and max(sizes) - min(sizes) <= 1
    stream.load_state({"epoch": count, "step": 0, "window": 0, "row": 0})
    rest = []
    while stream.epoch < 2 * count:
        rest += [[row.sample_indices for row in batch.rows] for batch in stream]
    assert rest == steps[first:]


def test_steps_and_epochs_are_numbered() -> None:
    stream = make_stream(make_source([30] * 37))
    for epoch in range(2):
        batches = list(stream)
        assert [(b.epoch, b.step) for b in batches] == [(epoch, k) for k in range(stream.num_steps(epoch))]
        assert stream.state() == {"epoch": epoch + 1, "step": 0, "window": 0, "row": 0}


@SETTINGS
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_rows_hold_their_samples(lengths: list[int], seed: int) -> None:
    source = make_source(lengths)
    for batch in make_stream(source, seed=seed):
        for row in batch.rows:
            check_row(row, source)
        num_losses = sum(int((row.labels_T != IGNORE).sum()) for row in batch.rows)
        assert batch.num_answer_tokens == num_losses
        num_tokens = sum(len(row.ids_T) for row in batch.rows if row.sample_indices)
        assert make_stream(source).lengths_of(batch.sample_ids).sum() == num_tokens
        assert sorted(batch.sample_ids) == sorted(k for row in batch.rows for k in row.sample_indices)


def check_row(row: PackedRow, source: MemorySource) -> None:
    assert row.ids_T.dtype == row.position_ids_T.dtype == row.labels_T.dtype == torch.int64
    assert len(row.ids_T) == len(row.position_ids_T) == len(row.labels_T) == row.boundaries[-1]
    if not row.sample_indices:
        assert len(row.ids_T) == 1 and row.labels_T.tolist() == [IGNORE]
        return
    assert len(row.ids_T) <= CAPACITY or len(row.sample_indices) == 1
    bounds = row.boundaries.tolist()
    assert len(bounds) == len(row.sample_indices) + 1 and bounds[0] == 0
    for index, start, end in zip(row.sample_indices, bounds[:-1], bounds[1:], strict=True):
        assert row.ids_T[start:end].tolist() == source.ids(index).tolist()
        assert row.position_ids_T[start:end].tolist() == list(range(end - start))
        num_prompt = max(int(source.num_prompt_N[index]), 1)
        assert row.labels_T[start : start + num_prompt].tolist() == [IGNORE] * num_prompt
        assert row.labels_T[start + num_prompt : end].tolist() == row.ids_T[start + num_prompt : end].tolist()


def test_bad_settings_are_refused() -> None:
    source = make_source([5, 6])
    with pytest.raises(UserError, match="rows_per_step: 5 is no multiple of the 2 ranks: set it to 6"):
        make_stream(source, 0, 2, rows_per_step=5)
    with pytest.raises(UserError, match="window: 0 is too small"):
        make_stream(source, window=0)
    with pytest.raises(UserError, match="no sample"):
        make_stream(make_source([]))


def test_shards_stream(tiny_llama: Path, tmp_path: Path) -> None:
    """From samples over shards to packed rows: what comes out is what the renderer gave."""
    from transformers import AutoTokenizer

    from recloom.data_shards.renderer import Renderer
    from recloom.data_shards.samples import Literal, Sample
    from recloom.data_shards.shards import ShardReader, write_shards

    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_llama))
    samples = [
        Sample(f"s-{k}", (Literal("word " * (k % 7) + "\nOutput:\n"),), (Literal(str(k)),), {})
        for k in range(50)
    ]
    write_shards(samples, renderer, tmp_path, samples_per_shard=20)
    reader = ShardReader(tmp_path)
    seen = 0
    for batch in PackedStream(reader, 64, 4, 16, seed=0, rank=0, world_size=1):
        for row in batch.rows:
            bounds = row.boundaries.tolist()
            for index, start, end in zip(row.sample_indices, bounds, bounds[1:], strict=False):
                rendered = renderer.render(samples[index])
                assert row.ids_T[start:end].tolist() == rendered.ids_T.tolist()
                assert (
                    int((row.labels_T[start:end] != IGNORE).sum())
                    == len(rendered.ids_T) - rendered.num_prompt
                )
                seen += 1
    assert seen == 50


VOCABULARY = 97


class RandomSource(MemorySource):
    """Token ids within a small model's vocabulary."""

    def ids(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, VOCABULARY, self.lengths_N[index], dtype=np.int32)


def random_llama(attention: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,  # large enough that attending to a neighbour shows
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).float().eval()


def example_losses(logits_TV: torch.Tensor, row: PackedRow) -> list[float]:
    """Summed loss of each sample of a row, Hugging Face's shift: logits at t predict the label at t + 1."""
    losses_T = torch.nn.functional.cross_entropy(
        logits_TV[:-1], row.labels_T[1:], ignore_index=IGNORE, reduction="none"
    )
    losses_T = torch.cat([torch.zeros(1), losses_T])
    bounds = row.boundaries.tolist()
    return [float(losses_T[start:end].sum()) for start, end in zip(bounds[:-1], bounds[1:], strict=True)]


def packed_and_single(model: Any, **forward: Any) -> tuple[list[float], list[float]]:
    lengths_N = np.array([17, 9, 30, 2, 6], dtype=np.int32)
    source = RandomSource(lengths_N, np.array([9, 1, 0, 1, 5], dtype=np.int32))
    packed = build_row(source, range(5))
    with torch.no_grad():
        logits_BTV = model(packed.ids_T[None], position_ids=packed.position_ids_T[None], **forward).logits
        single = [build_row(source, [k]) for k in range(5)]
        alone = [example_losses(model(row.ids_T[None], use_cache=False).logits[0], row)[0] for row in single]
    return example_losses(logits_BTV[0], packed), alone


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_loss_equals_unpacked_by_positions(attention: str, checkpointing: bool) -> None:
    """transformers derives the blocks from `position_ids` when there is neither a cache nor a 2D mask."""
    model = random_llama(attention)
    if checkpointing:
        model.train().gradient_checkpointing_enable()
    packed, alone = packed_and_single(model, use_cache=False)
    assert packed == pytest.approx(alone, rel=0, abs=1e-5)


@pytest.mark.parametrize(
    ("attention", "dtype"), [("sdpa", torch.bool), ("sdpa", torch.float32), ("eager", torch.float32)]
)
def test_packed_loss_equals_unpacked_by_mask(attention: str, dtype: torch.dtype) -> None:
    """An explicit mask needs no detection; it holds even with the cache on."""
    boundaries = torch.tensor([0, 17, 26, 56, 58, 64])
    mask = block_causal_mask(boundaries, 64, dtype)
    packed, alone = packed_and_single(random_llama(attention), attention_mask=mask, use_cache=True)
    assert packed == pytest.approx(alone, rel=0, abs=1e-5)


def test_the_cache_switches_detection_off() -> None:
    """The trap that `use_cache=False` avoids; when this fails, transformers has mended it."""
    packed, alone = packed_and_single(random_llama("sdpa"), use_cache=True)
    assert packed[0] == pytest.approx(alone[0], abs=1e-5)
    assert all(abs(a - b) > 1e-2 for a, b in zip(packed[1:], alone[1:], strict=True))


def test_slots_are_counted_in_the_row() -> None:
    source = make_source([5, 7, 9])
    assert build_row(source, [0, 2]).slots is None
    source.has_slots = True
    assert build_row(source, [2, 0, 1]).slots == [(1, "history", 2), (10, "history", 0), (15, "history", 1)]
    assert build_row(source, []).slots == []
