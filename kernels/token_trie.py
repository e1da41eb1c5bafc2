"""The catalogue as a trie of token ids: every path from the root to an end spells one item.

    trie = build_trie(tokens_T, offsets_N1, end_token=tokenizer.eos_token_id, vocab_size=len(tokenizer))
    trie.save(path); trie = TokenTrie.load(path)

Shape letters: N items, S branch states, E edges, T tail slots in K blocks, L leaves (distinct sequences), D
leaves with several items.

Two kinds of states, numbered on from each other as 32-bit integers:

* A *branch state* 0 <= s < S is a prefix that several sequences share; 0 is the root. Its edges are
  first_edge_S1[s] to first_edge_S1[s + 1], ascending by token; edge_target_E is where they lead.
* A *tail slot* S + t is a place in what only one distinct sequence is left to spell: tail_token_T[t] is the
  only token that may follow, the next slot is where it leads, and END (no token) stands behind the last one.

About two thirds of the tokens of real titles lie in tails, where an edge costs its token alone (2 bytes under
65,535 words). STATIC (arXiv 2602.22647) keeps the same information as a CSR matrix with a row a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recloom.kernels.trie_file import read_arrays, write_arrays

ROOT = 0
BLOCK = 256
MAX_STATES = 2**31 - 1
ARRAYS = (
    "first_edge_S1",
    "edge_token_E",
    "edge_target_E",
    "tail_token_T",
    "leaves_before_K",
    "crowded_D",
    "surplus_D1",
    "item_N",
)


def end_mark(dtype: np.dtype) -> int:
    """The value in tail_token_T that says END: the largest of the type, never a token."""
    return int(np.iinfo(dtype).max)


@dataclass(frozen=True)
class TokenTrie:
    """The arrays described above, plus the items of each leaf.

    Leaves are numbered in the order of their tails: leaves_before_K counts those that end before each block
    of BLOCK slots. item_N holds the items leaf by leaf, ascending within one. Only the leaves crowded_D have
    several (identical titles); surplus_D1[d] is how many more than one item the first d of those have
    together, so leaf l's items start at l plus the surplus before it.
    end_token closes every sequence, or is None when sequences close themselves (`build_trie`).
    """

    first_edge_S1: np.ndarray
    edge_token_E: np.ndarray
    edge_target_E: np.ndarray
    tail_token_T: np.ndarray
    leaves_before_K: np.ndarray
    crowded_D: np.ndarray
    surplus_D1: np.ndarray
    item_N: np.ndarray
    vocab_size: int
    end_token: int | None

    @property
    def num_branch_states(self) -> int:
        return len(self.first_edge_S1) - 1

    @property
    def num_states(self) -> int:
        return self.num_branch_states + len(self.tail_token_T)

    @property
    def num_items(self) -> int:
        return len(self.item_N)

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in ARRAYS)

    def children(self, state: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, states) that may follow, ascending by token; both empty at an end."""
        self.check_states(np.asarray([state]))
        slot = state - self.num_branch_states
        if slot < 0:
            edges = slice(int(self.first_edge_S1[state]), int(self.first_edge_S1[state + 1]))
            return self.edge_token_E[edges].astype(np.int64), self.edge_target_E[edges].astype(np.int64)
        if self.is_end(state):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        return self.tail_token_T[slot : slot + 1].astype(np.int64), np.array([state + 1])

    def is_end(self, state: int) -> bool:
        slot = state - self.num_branch_states
        return slot >= 0 and int(self.tail_token_T[slot]) == end_mark(self.tail_token_T.dtype)

    def forced_run(self, state: int) -> list[tuple[int, int]]:
        """(token, state after it) as long as one token alone may follow: these need no choice."""
        run = []
        tokens, states = self.children(state)
        while len(tokens) == 1:
            run.append((int(tokens[0]), int(states[0])))
            tokens, states = self.children(run[-1][1])
        return run

    def walk(self, tokens: Sequence[int], state: int = ROOT) -> int:
        """The state behind `tokens`; ValueError where the trie does not go on so."""
        for place, token in enumerate(tokens):
            allowed, states = self.children(state)
            found = int(np.searchsorted(allowed, token))
            if found == len(allowed) or int(allowed[found]) != token:
                raise ValueError(
                    f"tokens[{place}] = {token} continues no item of the trie: "
                    f"after {list(tokens[:place])} come {allowed[:10].tolist()}"
                    f"{' and others' if len(allowed) > 10 else ''}."
                )
            state = int(states[found])
        return state

    def leaf_of(self, state: int) -> int:
        """The leaf that a tail slot lies in."""
        slot = state - self.num_branch_states
        if not 0 <= slot < len(self.tail_token_T):
            raise ValueError(
                f"state {state} is no tail slot: several items still follow, or none has this state."
            )
        block = slot // BLOCK
        ends = np.count_nonzero(self.tail_token_T[block * BLOCK : slot] == end_mark(self.tail_token_T.dtype))
        return int(self.leaves_before_K[block]) + int(ends)

    @cached_property
    def leaf_slot_L(self) -> np.ndarray:
        """First tail slot of each leaf."""
        ends_L = np.flatnonzero(self.tail_token_T == end_mark(self.tail_token_T.dtype))
        return np.concatenate(([0], ends_L[:-1] + 1))

    def first_items(self, leaf_X: np.ndarray) -> np.ndarray:
        """Where the items of these leaves start in item_N; leaf L is the end."""
        return leaf_X + self.surplus_D1[np.searchsorted(self.crowded_D, leaf_X)]

    def items_at(self, state: int) -> np.ndarray:
        """The items spelled by the path that ends in this tail slot, ascending."""
        begin, end = self.first_items(self.leaf_of(state) + np.arange(2))
        return self.item_N[begin:end]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence, its end token included."""
        depth_S = np.zeros(self.num_branch_states, np.int64)
        source_E = np.repeat(np.arange(self.num_branch_states), np.diff(self.first_edge_S1))
        is_leaf_E = self.edge_target_E >= self.num_branch_states
        begin, end = 0, 1  # branch states of one depth stand together
        while begin < end:
            edges = slice(int(self.first_edge_S1[begin]), int(self.first_edge_S1[end]))
            targets = self.edge_target_E[edges][~is_leaf_E[edges]]
            depth_S[targets] = depth_S[begin] + 1
            begin, end = end, end + len(targets)
        tail_L = np.diff(np.append(self.leaf_slot_L, len(self.tail_token_T))) - 1
        return int((depth_S[source_E[is_leaf_E]] + 1 + tail_L).max())

    @cached_property
    def copies(self) -> dict[Any, Any]:
        """The arrays on other devices, by device (`trie_tensors.py`)."""
        return {}

    @cached_property
    def edge_into(self) -> EdgeInto:
        """Lookups from the ends back to the root, for restrictions; made on first use."""
        return EdgeInto.of(self)

    def check_states(self, states: np.ndarray) -> None:
        if states.size and (int(states.min()) < 0 or int(states.max()) >= self.num_states):
            wrong = states[(states < 0) | (states >= self.num_states)].flat[0]
            raise ValueError(
                f"state {wrong} is not of this trie, whose states are 0 to {self.num_states - 1}: "
                "start from ROOT and take states from the trie only."
            )

    def save(self, path: Path) -> None:
        """One file of aligned arrays with a checksum, mapped into memory by `load`; whole or not there."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        write_arrays(path, arrays, {"vocab_size": self.vocab_size, "end_token": self.end_token})

    @classmethod
    def load(cls, path: Path, verify: bool = True) -> TokenTrie:
        """Map a saved trie; verify reads it once to compare the checksum and the invariants."""
        arrays, meta = read_arrays(path, ARRAYS, verify)
        trie = cls(**arrays, vocab_size=meta["vocab_size"], end_token=meta["end_token"])
        if verify:
            trie.check()
        return trie

    def check(self) -> None:
        """ValueError unless all invariants hold, so that no step can read outside the arrays."""
        for rule, holds in invariants(self):
            if not holds:
                raise ValueError(f"malformed trie: {rule}; build it again with build_trie.")


def invariants(trie: TokenTrie) -> list[tuple[str, bool]]:
    """(rule, whether it holds); later rules are looked at only where the earlier ones hold."""
    first, tails = trie.first_edge_S1, trie.tail_token_T
    num_edges, end = len(trie.edge_token_E), end_mark(tails.dtype)
    sizes = [
        ("there must be a root and an item", len(first) >= 2 and len(tails) >= 1),
        ("the last tail must be closed by END", bool((tails[-1:] == end).all())),
        ("each edge has one token and one target", len(trie.edge_target_E) == num_edges),
        ("each crowded leaf has a surplus", len(trie.surplus_D1) == len(trie.crowded_D) + 1),
        ("there are at most 2^31 - 1 states", trie.num_states <= MAX_STATES),
    ]
    if not all(holds for _, holds in sizes):
        return sizes
    num_leaves = len(trie.leaf_slot_L)
    edge_starts = np.zeros(num_edges, bool)
    inner = first[1:-1][first[1:-1] < num_edges]
    edge_starts[inner] = True
    ascending = trie.edge_token_E[1:] > trie.edge_token_E[:-1]
    is_leaf = trie.edge_target_E >= trie.num_branch_states
    slots = trie.edge_target_E[is_leaf].astype(np.int64) - trie.num_branch_states
    real = tails[tails != end]
    crowded = trie.crowded_D.astype(np.int64)
    return [
        *sizes,
        ("first_edge ascends strictly", bool((np.diff(first.astype(np.int64)) > 0).all())),
        ("first_edge spans all edges", int(first[0]) == 0 and int(first[-1]) == num_edges),
        ("a state's tokens ascend", bool((ascending | edge_starts[1:]).all())),
        (
            "tokens are below vocab_size",
            max(int(trie.edge_token_E.max()), int(real.max(initial=0))) < trie.vocab_size,
        ),
        (
            "branch targets are 1, 2, 3, ...",
            np.array_equal(trie.edge_target_E[~is_leaf], np.arange(1, trie.num_branch_states)),
        ),
        ("leaf targets are the leaves' first slots", np.array_equal(slots, trie.leaf_slot_L)),
        ("blocks count the leaves before them", np.array_equal(trie.leaves_before_K, leaves_before(tails))),
        (
            "crowded leaves ascend within the leaves",
            bool((np.diff(crowded) > 0).all())
            and (not len(crowded) or 0 <= crowded[0] <= crowded[-1] < num_leaves),
        ),
        (
            "surplus ascends from 0 to the items beyond the leaves",
            bool((np.diff(trie.surplus_D1.astype(np.int64)) > 0).all())
            and (int(trie.surplus_D1[0]), int(trie.surplus_D1[-1])) == (0, trie.num_items - num_leaves),
        ),
        ("items are 0 to N - 1", np.array_equal(np.sort(trie.item_N), np.arange(trie.num_items))),
    ]


def leaves_before(tail_token_T: np.ndarray) -> np.ndarray:
    """How many END marks lie before each block of BLOCK tail slots."""
    is_end_T = tail_token_T == end_mark(tail_token_T.dtype)
    ends_K = np.add.reduceat(is_end_T, np.arange(0, len(is_end_T), BLOCK), dtype=np.int64)
    return (np.cumsum(ends_K) - ends_K).astype(np.int32)


@dataclass(frozen=True)
class EdgeInto:
    """The edge that leads into each leaf and each branch state, and the leaf of each item."""

    leaf_L: np.ndarray
    branch_S: np.ndarray
    leaf_of_item_N: np.ndarray

    @classmethod
    def of(cls, trie: TokenTrie) -> EdgeInto:
        is_leaf = trie.edge_target_E >= trie.num_branch_states
        leaf_of_item_N = np.empty(trie.num_items, np.int64)
        num_leaves = len(trie.leaf_slot_L)
        counts = np.diff(trie.first_items(np.arange(num_leaves + 1)))
        leaf_of_item_N[trie.item_N] = np.repeat(np.arange(num_leaves), counts)
        # nothing leads into the root: -1
        return cls(np.flatnonzero(is_leaf), np.append(-1, np.flatnonzero(~is_leaf)), leaf_of_item_N)
