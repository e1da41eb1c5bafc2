"""The trie against the list of sequences that it was built from; files and restrictions."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloom.kernels.token_trie import ARRAYS, ROOT, TokenTrie, invariants
from recloom.kernels.trie_build import build_trie, sorted_by_key, trie_of
from recloom.kernels.trie_cursor import ItemCursor
from recloom.kernels.trie_restrictions import restrict

sys.path.insert(0, str(Path(__file__).parent))
from catalogues import END, VOCAB, build, children_of, sequences, spelled

MANY = settings(max_examples=1000, deadline=None)


@MANY
@given(sequences)
def test_every_prefix_has_the_children_of_the_list(items: list[list[int]]) -> None:
    trie = build(items)
    trie.check()
    for sequence in set(spelled(items)):
        state = ROOT
        for depth, token in enumerate(sequence):
            tokens, states = trie.children(state)
            assert tokens.tolist() == children_of(items, sequence[:depth])
            assert not trie.is_end(state)
            state = int(states[tokens.tolist().index(token)])
        assert trie.is_end(state) and trie.children(state)[0].size == 0
        same = [n for n, other in enumerate(spelled(items)) if other == sequence]
        assert trie.items_at(state).tolist() == same
    assert trie.longest == max(map(len, spelled(items)))


@MANY
@given(sequences)
def test_forced_runs_stop_where_a_choice_begins(items: list[list[int]]) -> None:
    trie = build(items)
    for sequence in spelled(items):
        for depth in range(len(sequence)):
            prefix = sequence[:depth]
            run = [token for token, _ in trie.forced_run(trie.walk(prefix))]
            slow: list[int] = []
            while len(next_tokens := children_of(items, (*prefix, *slow))) == 1:
                slow += next_tokens
            assert run == slow


def test_sequences_that_close_themselves() -> None:
    trie = trie_of([[3, 9], [4, 9], [3, 9]], end_token=None, vocab_size=10)
    assert trie.items_at(trie.walk([3, 9])).tolist() == [0, 2]
    with pytest.raises(ValueError, match="one is the beginning of another: give an end_token"):
        trie_of([[3], [3, 4]], end_token=None, vocab_size=10)


def test_blocks_of_tails_keep_their_leaves() -> None:
    """More than one BLOCK of slots, leaves that cross the blocks' borders."""
    random = np.random.default_rng(0)
    items = [[n, *random.integers(500, 900, random.integers(0, 9))] for n in range(2, 400)]
    trie = trie_of(items, end_token=END, vocab_size=70_000)
    trie.check()
    assert trie.edge_token_E.dtype == np.uint32
    for n, item in enumerate(items):
        assert trie.items_at(trie.walk([*item, END])).tolist() == [n]


@pytest.mark.parametrize("bits", [20, 62])
def test_both_ways_of_sorting_are_stable(bits: int) -> None:
    random = np.random.default_rng(1)
    keys = random.integers(2**bits - 50, 2**bits, 500)
    order = np.argsort(keys, kind="stable")
    sorted_keys, places = sorted_by_key(keys, np.arange(500))
    assert np.array_equal(sorted_keys, keys[order]) and np.array_equal(places, order)


@pytest.mark.parametrize(
    ("items", "end", "said"),
    [
        ([], END, "a trie needs at least one item"),
        ([[3], []], END, "item 1 has no token"),
        ([[3], [12]], END, "ids must be 0 to 11"),
        ([[-1]], END, "ids must be 0 to 11"),
        ([[3], [4, END, 5]], END, "item 1 holds the end token 1"),
        ([[3]], 12, "end_token is 12"),
    ],
)
def test_input_that_is_no_catalogue(items: list[list[int]], end: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        trie_of(items, end_token=end, vocab_size=VOCAB)


def test_offsets_must_span_the_tokens() -> None:
    with pytest.raises(ValueError, match="must ascend from 0 to 3"):
        build_trie(np.array([3, 4, 5]), np.array([0, 2]), end_token=END, vocab_size=VOCAB)
    with pytest.raises(ValueError, match="give one axis of integers"):
        build_trie(np.array([3.0]), np.array([0, 1]), end_token=END, vocab_size=VOCAB)


def test_a_saved_trie_is_the_same(tmp_path: Path) -> None:
    trie = build([[3, 4], [3], [3, 4]])
    trie.save(tmp_path / "t.trie")
    loaded = TokenTrie.load(tmp_path / "t.trie")
    assert all(np.array_equal(getattr(trie, name), getattr(loaded, name)) for name in ARRAYS)
    assert (loaded.vocab_size, loaded.end_token) == (VOCAB, END)
    assert not loaded.edge_token_E.flags.writeable  # mapped, not copied


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.trie"
    build([[3, 4], [3], [5, 6, 7]]).save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        try:
            loaded = TokenTrie.load(path)
        except ValueError:
            continue
        # between the arrays lies padding that no one reads
        assert all(
            np.array_equal(getattr(loaded, n), getattr(build([[3, 4], [3], [5, 6, 7]]), n)) for n in ARRAYS
        )
        assert loaded.vocab_size == VOCAB and loaded.end_token == END
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="bytes, not"):
        TokenTrie.load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="no saved trie"):
        TokenTrie.load(path)


@pytest.mark.parametrize("name", ARRAYS)
def test_each_invariant_can_fail(name: str) -> None:
    """One changed number anywhere makes the trie malformed."""
    trie = build([[3, 4, 5], [3, 4, 6], [7], [7], [3, 8]])
    for place in range(len(getattr(trie, name))):
        changed = getattr(trie, name).copy()
        changed[place] = 10_000
        with pytest.raises(ValueError, match="malformed trie"):
            replace(trie, **{name: changed}).check()
    assert all(holds for _, holds in invariants(trie))
    assert {field.name for field in fields(TokenTrie)} == {*ARRAYS, "vocab_size", "end_token"}


def test_states_and_walks_outside_the_trie() -> None:
    trie = build([[3, 4], [3, 5]])
    with pytest.raises(ValueError, match="not of this trie"):
        trie.children(trie.num_states)
    with pytest.raises(ValueError, match=r"tokens\[1\] = 9 continues no item"):
        trie.walk([3, 9])
    with pytest.raises(ValueError, match="no tail slot"):
        trie.items_at(ROOT)


restricted = sequences.flatmap(
    lambda items: st.tuples(
        st.just(items),
        st.one_of(st.none(), st.lists(st.integers(0, len(items) - 1), min_size=1)),
        st.lists(st.integers(0, len(items) - 1)),
    )
)


@MANY
@given(restricted)
def test_restrictions_equal_a_trie_of_what_is_left(
    case: tuple[list[list[int]], list[int] | None, list[int]],
) -> None:
    items, allowed, excluded = case
    trie = build(items)
    left = (set(range(len(items))) if allowed is None else set(allowed)) - set(excluded)
    if not left:
        with pytest.raises(ValueError, match="request 1 has no item left"):
            restrict(trie, allowed=[None, allowed], excluded=[None, excluded])
        return
    kept = [items[n] for n in sorted(left)]
    for sequence in set(spelled(kept)):
        cursor = ItemCursor(trie, allowed, excluded)
        for depth, token in enumerate(sequence):
            assert cursor.allowed().tolist() == children_of(kept, sequence[:depth])
            assert cursor.items() == []
            cursor.advance(token)
        assert cursor.items() == [n for n in sorted(left) if tuple(spelled(items)[n]) == sequence]


def test_rows_of_restrictions() -> None:
    trie = build([[3, 4], [3, 5], [6], [6, 7]])
    limits = restrict(trie, allowed=[[0], None, [1, 2]], excluded=[None, [2, 3], None])
    taken = limits.rows(np.array([2, 2, 0]))
    edges = np.arange(len(trie.edge_token_E))
    for new, old in enumerate((2, 2, 0)):
        assert np.array_equal(taken.permits(new, edges), limits.permits(old, edges))
        assert np.array_equal(
            taken.permitted_items(new, np.arange(4)), limits.permitted_items(old, np.arange(4))
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "give `allowed`, `excluded` or both"),
        ({"allowed": [[0]], "excluded": [[1], None]}, "each with one entry a request"),
        ({"allowed": [[4]]}, r"allowed\[0\] holds item 4"),
        ({"excluded": [None, [-1]]}, r"excluded\[1\] holds item -1"),
        ({"allowed": [[]]}, "request 0 has no item left"),
    ],
)
def test_restrictions_that_make_no_sense(arguments: dict[str, list[list[int] | None]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        restrict(build([[3, 4], [3, 5], [6], [6, 7]]), **arguments)  # type: ignore[arg-type]
