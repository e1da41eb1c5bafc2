"""Packing: nothing lost, nothing too long, little room wasted; the mask keeps samples apart."""

from __future__ import annotations

from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.data_shards import packing
from recloom.data_shards.packing import (
    best_filling,
    best_fit_decreasing,
    block_causal_mask,
    fewest_rows,
    fill_rows,
    pack_window,
    packing_efficiency,
)
from recloom.data_shards.renderer import Renderer
from recloom.data_shards.textualize import listwise
from recloom.data_shards.textualize.listwise import ListwiseContext, listwise_sample
from recloom.data_shards.textualize.template import TextOptions, load_template, one_line_titles

SETTINGS = settings(max_examples=200, deadline=None, derandomize=True)


def slow_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """Free space of the rows that textbook best-fit decreasing leaves, O(n^2)."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [space for space in free if space >= length]
        if fits:
            free.remove(min(fits))
        free.append((min(fits) if fits else capacity) - length)
    return sorted(free)


@SETTINGS
@given(lengths=st.lists(st.integers(1, 120), max_size=80), capacity=st.integers(1, 100))
def test_packing_keeps_every_sample_and_fits(lengths: list[int], capacity: int) -> None:
    rows = pack_window(lengths, capacity)
    assert sorted(chain.from_iterable(rows)) == list(range(len(lengths)))
    assert all(sum(lengths[k] for k in row) <= capacity or len(row) == 1 for row in rows)
    assert all(rows) and rows == pack_window(np.asarray(lengths), capacity)
    assert len(rows) <= len(slow_best_fit(lengths, capacity))


@SETTINGS
@given(lengths=st.lists(st.integers(1, 120), max_size=80), capacity=st.integers(1, 100))
def test_best_fit_decreasing(lengths: list[int], capacity: int) -> None:
    rows = best_fit_decreasing(np.asarray(lengths, dtype=np.int64), capacity)
    assert sorted(capacity - sum(lengths[k] for k in row) for row in rows) == slow_best_fit(lengths, capacity)


def fewest_by_trying(lengths: list[int], capacity: int) -> int:
    """Rows of the best packing, all ways tried; a sample that is too long has a row of its own."""
    if not lengths:
        return 0
    first, *others = lengths
    subsets = chain.from_iterable(combinations(range(len(others)), n) for n in range(len(lengths)))
    fitting = [
        chosen for chosen in subsets if not chosen or first + sum(others[k] for k in chosen) <= capacity
    ]
    return 1 + min(
        fewest_by_trying([length for k, length in enumerate(others) if k not in chosen], capacity)
        for chosen in fitting
    )


@SETTINGS
@given(lengths=st.lists(st.integers(1, 40), max_size=6), capacity=st.integers(1, 60))
def test_no_packing_has_fewer_rows_than_the_bound(lengths: list[int], capacity: int) -> None:
    fewest = fewest_by_trying(lengths, capacity)
    assert fewest_rows(np.asarray(lengths, dtype=np.int64), capacity) <= fewest
    assert fewest <= len(pack_window(lengths, capacity))


def test_rows_that_cannot_be_fewer_are_not_filled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four samples of 420 to 509 fit into 2,048, however they are chosen; filling is what takes the time."""
    monkeypatch.setattr(packing, "fill_rows", lambda lengths_N, capacity: pytest.fail("filled"))
    assert len(pack_window([420 + k % 90 for k in range(1024)], 2048)) == 256


@SETTINGS
@given(lengths=st.lists(st.integers(1, 30), max_size=9), space=st.integers(-5, 60))
def test_best_filling_is_the_best_subset(lengths: list[int], space: int) -> None:
    lengths.sort(reverse=True)
    chosen = best_filling(np.asarray(lengths, dtype=np.int64), space).tolist()
    sums = {sum(subset) for size in range(10) for subset in combinations(lengths, size)}
    assert sum(lengths[k] for k in chosen) == max(total for total in sums if total <= max(space, 0))
    assert chosen == sorted(set(chosen), reverse=True)


def slow_fill_rows(lengths: list[int], capacity: int) -> list[list[int]]:
    """The longest sample left, then the best filling: of several that fill as well, the one that needs the
    fewest of the longest samples to choose from, found by sums as sets."""
    left = sorted(range(len(lengths)), key=lambda k: -lengths[k])
    rows = []
    while left:
        row = [left.pop(0)]
        space = max(capacity - lengths[row[0]], 0)
        reachable = [{0}]
        for k in left:
            reachable.append(
                reachable[-1] | {t + lengths[k] for t in reachable[-1] if t + lengths[k] <= space}
            )
        total = max(reachable[-1])
        while total:
            last = next(k for k, sums in enumerate(reachable) if total in sums) - 1
            row.append(left[last])
            total -= lengths[left[last]]
        left = [k for k in left if k not in row]
        rows.append(row)
    return rows


@SETTINGS
@given(lengths=st.lists(st.integers(1, 150), min_size=1, max_size=40), capacity=st.integers(1, 140))
def test_rows_are_filled_in_one_order_for_ever(lengths: list[int], capacity: int) -> None:
    """A checkpoint stands in a row by its number: another order would repeat samples."""
    assert fill_rows(np.asarray(lengths, dtype=np.int64), capacity) == slow_fill_rows(lengths, capacity)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), mean=st.integers(250, 450), spread=st.floats(0.2, 0.5))
def test_realistic_lengths_waste_under_three_percent(seed: int, mean: int, spread: float) -> None:
    """Prompt lengths spread around a mean, long and short histories mixed."""
    draws = np.random.default_rng(seed).lognormal(np.log(mean), spread, size=1024)
    lengths = np.clip(draws, 60, 2048).astype(int)
    assert packing_efficiency(lengths, pack_window(lengths, 2048), 2048) >= 0.97


def test_efficiency_counts_the_room() -> None:
    assert packing_efficiency([4, 4, 2], [[0, 1], [2]], 10) == pytest.approx(0.5)
    assert packing_efficiency([15, 5], [[0], [1]], 10) == pytest.approx(20 / 25)
    assert packing_efficiency([], [], 10) == 1.0


def real_lengths(shared_data: Path, tokenizer_folder: Path) -> list[int]:
    """Tokens of real users' listwise prompts: 10 liked, 5 disliked, 10 candidates, both augmentations."""
    from transformers import AutoTokenizer

    renderer = Renderer(AutoTokenizer.from_pretrained(tokenizer_folder))
    rows = (shared_data / "ml-100k" / "u.item").read_text(encoding="latin-1").splitlines()
    options = TextOptions(one_line_titles(row.split("|")[1] for row in rows), "movie")
    data_N4 = np.loadtxt(shared_data / "ml-100k" / "u.data", dtype=np.int64)
    template = load_template("listwise", listwise.FAMILY)
    rng = np.random.default_rng(0)
    liked_lists, lengths = [], []
    for user in range(1, 944):
        mine = data_N4[data_N4[:, 0] == user]
        mine = mine[np.argsort(mine[:, 3], kind="stable")]
        liked, disliked = ((mine[keep, 1] - 1).tolist() for keep in (mine[:, 2] >= 4, mine[:, 2] < 3))
        liked_lists.append(liked)
        shown = rng.choice(len(options.titles), 10, replace=False).tolist()
        similar = liked_lists[rng.integers(len(liked_lists))]
        context = ListwiseContext(
            user, (), shown, liked[-10:], disliked[-5:], similar[-10:], shown[::-1], answer=sorted(shown)
        )
        lengths.append(len(renderer.render(listwise_sample(template, context, options)).ids_T))
    return lengths


def test_real_prompts_waste_under_three_percent(shared_data: Path, smollm2: Path) -> None:
    lengths = real_lengths(shared_data, smollm2)
    assert 300 < np.mean(lengths) < 700
    for window in (len(lengths), 512):
        rows = pack_window(lengths[:window], 2048)
        assert packing_efficiency(lengths, rows, 2048) >= 0.97
    plain = best_fit_decreasing(np.asarray(lengths), 2048)
    assert packing_efficiency(lengths, plain, 2048) < 0.97, "these prompts need the better filling"


def test_mask_by_hand() -> None:
    mask = block_causal_mask(torch.tensor([0, 2, 3], dtype=torch.int32), 5, torch.bool)
    want = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert mask.shape == (1, 1, 5, 5) and mask[0, 0].int().tolist() == want
    added = block_causal_mask(torch.tensor([0, 2, 3]), 5, torch.float32)
    assert torch.equal(added == 0, mask) and float(added.min()) == torch.finfo(torch.float32).min
