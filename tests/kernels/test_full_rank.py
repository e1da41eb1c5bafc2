"""Ranking of the whole catalogue: against sorting in numpy, ties, seen items, short lists, refusals."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recloom.kernels import full_rank_cpu as cpu
from recloom.kernels import full_rank_gpu as gpu
from recloom.kernels.full_rank import Ranking, full_rank

sys.path.insert(0, str(Path(__file__).parent))
from triton_tools import CAPABILITIES, compiled, interpret  # noqa: E402

BACKENDS = ["numba", "reference", "triton"]


def by_sorting(scores_NI: np.ndarray, k: int, seen: list[list[int]], targets: list[int]) -> Ranking:
    """The definition, user by user."""
    tops, values, ranks = [], [], []
    for scores_I, left_out, target in zip(scores_NI, seen, targets, strict=True):
        unseen = [item for item in range(len(scores_I)) if item not in set(left_out)]
        best = sorted(unseen, key=lambda item: (-scores_I[item], item))[:k]
        missing = k - len(best)
        tops.append(best + [-1] * missing)
        values.append([scores_I[item] for item in best] + [-math.inf] * missing)
        ahead = sum(scores_I[item] >= scores_I[target] for item in unseen if item != target)
        ranks.append(ahead if target in unseen else len(scores_I))
    return Ranking(torch.tensor(tops), torch.tensor(values, dtype=torch.float64), torch.tensor(ranks))


def packed(seen: list[list[int]]) -> tuple[Tensor, Tensor]:
    offsets = np.cumsum([0, *map(len, seen)])
    return torch.from_numpy(offsets), torch.tensor([item for row in seen for item in row], dtype=torch.int64)


def assert_same(ours: Ranking, theirs: Ranking) -> None:
    assert torch.equal(ours.top_items_NK, theirs.top_items_NK)
    assert torch.equal(ours.top_scores_NK.double(), theirs.top_scores_NK)
    if ours.target_ranks_N is not None:
        assert torch.equal(ours.target_ranks_N, theirs.target_ranks_N)


Problem = tuple[Tensor, Tensor, int, list[list[int]], list[int]]


def drawn(users: int, items: int, width: int, k: int, most_seen: int, seed: int, values: int = 2) -> Problem:
    """Small integers as values: products are exact, and many scores are equal."""
    random = np.random.default_rng(seed)
    users_ND = torch.from_numpy(random.integers(-values, values + 1, (users, width))).float()
    items_ID = torch.from_numpy(random.integers(-values, values + 1, (items, width))).float()
    seen = [random.integers(0, items, random.integers(0, most_seen + 1)).tolist() for _ in range(users)]
    return users_ND, items_ID, k, seen, random.integers(0, items, users).tolist()


def compare(problem: Problem, backend: str) -> None:
    users_ND, items_ID, k, seen, targets = problem
    ours = full_rank(users_ND, items_ID, k, packed(seen), torch.tensor(targets), backend=backend)
    assert_same(ours, by_sorting((users_ND @ items_ID.T).double().numpy(), k, seen, targets))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 12),
    st.integers(1, 200),
    st.integers(1, 8),
    st.integers(1, 30),
    st.integers(0, 40),
    st.integers(0, 10_000),
    st.sampled_from(["numba", "reference"]),
)
def test_equals_sorting(
    users: int, items: int, width: int, k: int, most_seen: int, seed: int, backend: str
) -> None:
    compare(drawn(users, items, width, k, most_seen, seed), backend)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize(
    ("users", "items", "tile"), [(1, 1, 4), (3, 129, 64), (127, 300, 64), (129, 127, 1000)]
)
def test_tiles_and_blocks_meet(
    users: int, items: int, tile: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "TILE", tile)
    monkeypatch.setattr(cpu, "USER_BLOCK", 100)
    for k in (1, 7, items, items + 5):
        compare(drawn(users, items, 5, k, 30, seed=k), backend)


@pytest.mark.parametrize(
    ("users", "items", "k", "most_seen"), [(1, 1, 1, 0), (3, 130, 5, 20), (66, 200, 3, 9), (2, 70, 90, 60)]
)
def test_triton_interpreted(
    users: int, items: int, k: int, most_seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpret(gpu, monkeypatch)
    compare(drawn(users, items, 5, k, most_seen, seed=users), "triton")


def test_triton_interpreted_in_blocks_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(gpu, monkeypatch)
    monkeypatch.setattr(gpu, "CANDIDATE_BYTES", 8 * 4 * 64 * 2)
    compare(drawn(5, 300, 4, 4, 50, seed=1), "triton")


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_scores_equal(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(gpu, monkeypatch)
    problem = torch.zeros(2, 3), torch.ones(70, 3), 4, [[0, 2], []], [5, 69]
    compare(problem, backend)
    ranks_N = full_rank(*problem[:2], 1, packed(problem[3]), torch.tensor([5, 69]), backend=backend)[2]
    assert ranks_N is not None and ranks_N.tolist() == [67, 69]


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_seen_and_a_seen_target(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(gpu, monkeypatch)
    users_ND, items_ID, *_ = drawn(2, 9, 4, 1, 0, seed=0)
    seen = packed([list(range(9)), [3, 3]])
    ranking = full_rank(users_ND, items_ID, 3, seen, torch.tensor([1, 3]), backend=backend)
    assert ranking.top_items_NK[0].tolist() == [-1, -1, -1] and 3 not in ranking.top_items_NK[1]
    assert ranking.top_scores_NK[0].tolist() == [-math.inf] * 3
    assert ranking.target_ranks_N is not None and ranking.target_ranks_N.tolist() == [9, 9]


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_targets_and_seen(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(gpu, monkeypatch)
    users_ND, items_ID, *_ = drawn(3, 80, 4, 1, 0, seed=0)
    ranking = full_rank(users_ND, items_ID, 5, backend=backend)
    assert ranking.target_ranks_N is None
    wanted = by_sorting((users_ND @ items_ID.T).double().numpy(), 5, [[]] * 3, [0] * 3)
    assert_same(ranking, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cosine_in_every_type(dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton takes up to float32")
    interpret(gpu, monkeypatch)
    # The interpreter multiplies the bits of bfloat16 as integers.
    monkeypatch.setattr(gpu, "dot_dtype", lambda items_ID: torch.float32)
    generator = torch.Generator().manual_seed(0)
    users_ND, items_ID = torch.randn(5, 12, generator=generator), torch.randn(300, 12, generator=generator)
    items_ID[7] = 0
    users_ND, items_ID = users_ND.to(dtype), items_ID.to(dtype)
    cosines_NI = F.normalize(users_ND.double(), dim=1) @ F.normalize(items_ID.double(), dim=1).T
    targets_N = torch.arange(5) * 50
    ranking = full_rank(users_ND, items_ID, 10, targets_N=targets_N, cosine=True, backend=backend)
    wanted = by_sorting(cosines_NI.numpy(), 10, [[]] * 5, targets_N.tolist())
    assert torch.equal(ranking.top_items_NK, wanted.top_items_NK)
    torch.testing.assert_close(ranking.top_scores_NK.double(), wanted.top_scores_NK, atol=1e-6, rtol=1e-5)
    assert ranking.target_ranks_N is not None and torch.equal(ranking.target_ranks_N, wanted.target_ranks_N)


@pytest.mark.parametrize("items", [1, 50, 1500, 2100])
def test_copies_of_the_target_count_against_it(items: int) -> None:
    """Not exact in float32: holds only if the target's score is the one of its tile, to the bit."""
    generator = torch.Generator().manual_seed(items)
    users_ND = torch.randn(300, 37, generator=generator)
    items_ID = torch.randn(1, 37, generator=generator).expand(items, 37).contiguous()
    targets_N = torch.randint(0, items, (300,), generator=generator)
    ranks_N = full_rank(users_ND, items_ID, 1, targets_N=targets_N, backend="numba").target_ranks_N
    assert ranks_N is not None and ranks_N.tolist() == [items - 1] * 300


def test_a_wrong_guess_of_the_targets_score_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    guess = cpu.Block.target_scores_B
    monkeypatch.setattr(cpu.Block, "target_scores_B", lambda block: guess(block) + 1)
    compare(drawn(30, 200, 5, 3, 20, seed=3), "numba")


def test_twice_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    users_ND, items_ID = torch.randn(50, 33, generator=generator), torch.randn(2500, 33, generator=generator)
    first, second = (full_rank(users_ND, items_ID, 20, targets_N=torch.arange(50)) for _ in range(2))
    for left, right in zip(first, second, strict=True):
        assert left is not None and right is not None and torch.equal(left, right)


def test_the_references_agree_on_real_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    users_ND, items_ID = torch.randn(70, 33, generator=generator), torch.randn(2500, 33, generator=generator)
    seen = packed([torch.randint(0, 2500, (60,), generator=generator).tolist() for _ in range(70)])
    targets_N = torch.randint(0, 2500, (70,), generator=generator)
    ours, theirs = (
        full_rank(users_ND, items_ID, 20, seen, targets_N, backend=backend)
        for backend in ("numba", "reference")
    )
    assert torch.equal(ours.top_items_NK, theirs.top_items_NK)
    torch.testing.assert_close(ours.top_scores_NK, theirs.top_scores_NK)
    assert torch.equal(ours.target_ranks_N, theirs.target_ranks_N)


INTEGERS = ("n_users", "n_items", "share", "n_tiles", "n_chosen")
LONG = ("targets_N", "places_SN", "ends_N", "seen_P", "best_NG", "tiles_NC", "first_NC", "last_NC")


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_triton_compiles(dtype: torch.dtype, capability: int) -> None:
    name = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    constants = gpu.constants_of(torch.empty(1, 64, dtype=dtype), True) | {
        "TARGETS": True,
        "PRECISION": "tf32x3",
    }
    types = dict.fromkeys(INTEGERS, "i32") | dict.fromkeys((*LONG, "candidates_NCT"), "*i64")
    types |= {"counts_SN": "*i32", "queries_ND": name, "items_ID": name}
    for kernel in (gpu.target_kernel, gpu.sweep_kernel, gpu.candidates_kernel):
        signature = {
            parameter.name: "constexpr" if parameter.is_constexpr else types.get(parameter.name, "*fp32")
            for parameter in kernel.params
        }
        used = {name: value for name, value in constants.items() if name in signature}
        assert compiled(kernel, signature, used, capability)


def good() -> dict[str, Any]:
    return {
        "users_ND": torch.ones(3, 2),
        "items_ID": torch.ones(5, 2),
        "k": 2,
        "seen": (torch.tensor([0, 1, 2, 2]), torch.tensor([0, 4])),
        "targets_N": torch.tensor([0, 1, 4]),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"backend": "faiss"}, "backend is 'faiss'"),
        ({"users_ND": torch.ones(3)}, "users_ND is"),
        ({"items_ID": torch.ones(5, 3)}, "items_ID has 3 columns"),
        ({"items_ID": torch.ones(0, 2)}, "items_ID is"),
        ({"items_ID": torch.full((5, 2), math.nan)}, "items_ID holds a row that is not finite"),
        ({"users_ND": torch.full((3, 2), math.inf)}, "users_ND holds a row that is not finite"),
        ({"items_ID": torch.full((5, 2), 1e25)}, "items_ID holds a row .* whose norm is not"),
        ({"targets_N": torch.tensor([0, 1, 5])}, "targets_N holds an id outside 0..4"),
        ({"targets_N": torch.tensor([0, -1, 4])}, "targets_N holds an id outside 0..4"),
        ({"targets_N": torch.tensor([0, 1])}, "targets_N is"),
        ({"seen": (torch.tensor([0, 1, 2]), torch.tensor([0, 4]))}, "seen holds 3 offsets"),
        ({"seen": (torch.tensor([0, 2, 1, 2]), torch.tensor([0, 4]))}, "offsets that fall"),
        ({"seen": (torch.tensor([0, 1, 2, 3]), torch.tensor([0, 4]))}, "do not go from 0"),
        ({"seen": (torch.tensor([0, 1, 2, 2]), torch.tensor([0, 5]))}, "seen holds an item outside 0..4"),
        ({"seen": (torch.tensor([0, 1, 2, 2]), torch.tensor([-1, 0]))}, "seen holds an item outside 0..4"),
        (
            {"seen": (torch.tensor([0, 1, 2, 2]), torch.tensor([0.0, 4.0]))},
            "seen holds items of torch.float32",
        ),
        ({"users_ND": torch.ones(3, 2).double(), "backend": "triton"}, "backend is 'triton'"),
    ],
)
def test_refuses_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        full_rank(**(good() | change))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    users_ND, items_ID, k, seen, targets = drawn(300, 5000, 16, 20, 60, seed=0)
    inputs = users_ND.to("cuda", dtype), items_ID.to("cuda", dtype)
    lists = tuple(part.cuda() for part in packed(seen))
    ranking = full_rank(*inputs, k, lists, torch.tensor(targets).cuda(), backend="triton")
    wanted = by_sorting((users_ND @ items_ID.T).double().numpy(), k, seen, targets)
    assert_same(Ranking(*(part.cpu() for part in ranking)), wanted)
