"""Build a TokenTrie level by level, every step an operation on whole arrays.

Shape letters as in `token_trie.py`; A sequences that share a state at this level, G groups of them, one a new
edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recloom.kernels.token_trie import MAX_STATES, TokenTrie, end_mark, leaves_before


def build_trie(
    tokens_T: np.ndarray, offsets_N1: np.ndarray, *, end_token: int | None, vocab_size: int
) -> TokenTrie:
    """The trie of sequences tokens_T[offsets_N1[n] : offsets_N1[n + 1]], one an item n.

    Sequences may have any length from 1 and be equal to each other or prefixes of each other: end_token is
    put behind each. With end_token None nothing is, and then none may be a proper prefix of another.

    Errors: ValueError for no sequence, an empty one, a token outside 0 to vocab_size - 1, end_token inside a
    sequence, and proper prefixes without end_token.
    """
    check_input(tokens_T, offsets_N1, end_token, vocab_size)
    sequences = Sequences.closed(tokens_T, offsets_N1, end_token)
    levels: list[Level] = []
    seq_A, node_A = np.arange(len(sequences.length_N)), np.zeros(len(sequences.length_N), np.int64)
    while len(seq_A):
        level, seq_A, node_A = next_level(sequences, seq_A, node_A, len(levels), vocab_size)
        levels.append(level)
    return assemble(sequences, levels, end_token, vocab_size)


def trie_of(sequences: Sequence[Sequence[int]], *, end_token: int | None, vocab_size: int) -> TokenTrie:
    """`build_trie` for lists of token ids."""
    lengths = [len(sequence) for sequence in sequences]
    tokens_T = np.fromiter((token for sequence in sequences for token in sequence), np.int64, sum(lengths))
    offsets_N1 = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    return build_trie(tokens_T, offsets_N1, end_token=end_token, vocab_size=vocab_size)


def check_input(tokens_T: np.ndarray, offsets_N1: np.ndarray, end_token: int | None, vocab_size: int) -> None:
    for name, array in (("tokens_T", tokens_T), ("offsets_N1", offsets_N1)):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(
                f"{name} has dtype {array.dtype} and {array.ndim} axes: give one axis of integers."
            )
    if len(offsets_N1) < 2:
        raise ValueError("offsets_N1 holds no sequence: a trie needs at least one item.")
    lengths_N = np.diff(offsets_N1.astype(np.int64))
    if int(offsets_N1[0]) != 0 or int(offsets_N1[-1]) != len(tokens_T) or (lengths_N < 0).any():
        raise ValueError(f"offsets_N1 must ascend from 0 to {len(tokens_T)}, the number of tokens.")
    if (lengths_N == 0).any():
        item = int(np.argmin(lengths_N != 0))
        raise ValueError(f"item {item} has no token: give it a text, or leave it out.")
    lowest, highest = int(tokens_T.min()), int(tokens_T.max())
    if lowest < 0 or highest >= vocab_size:
        raise ValueError(
            f"tokens_T has ids {lowest} to {highest}, vocab_size is {vocab_size}: "
            f"ids must be 0 to {vocab_size - 1}."
        )
    if end_token is None:
        return
    if not 0 <= end_token < vocab_size:
        raise ValueError(f"end_token is {end_token}: it must be 0 to {vocab_size - 1} (vocab_size - 1).")
    inside = tokens_T == end_token
    if inside.any():
        item = int(np.searchsorted(offsets_N1, int(np.argmax(inside)), side="right")) - 1
        raise ValueError(
            f"item {item} holds the end token {end_token}: remove it, it is added behind each item."
        )


@dataclass(frozen=True)
class Sequences:
    """All sequences with their end tokens; sequence n is token_T[begin_N[n] : begin_N[n] + length_N[n]]."""

    token_T: np.ndarray
    begin_N: np.ndarray
    length_N: np.ndarray

    @classmethod
    def closed(cls, tokens_T: np.ndarray, offsets_N1: np.ndarray, end_token: int | None) -> Sequences:
        begin_N, length_N = offsets_N1[:-1].astype(np.int64), np.diff(offsets_N1.astype(np.int64))
        if end_token is None:
            return cls(tokens_T, begin_N, length_N)
        num_items = len(length_N)
        closed_T = np.full(len(tokens_T) + num_items, end_token, tokens_T.dtype)
        is_end_T = np.zeros(len(closed_T), bool)
        is_end_T[offsets_N1[1:].astype(np.int64) + np.arange(num_items)] = True
        closed_T[~is_end_T] = tokens_T
        return cls(closed_T, begin_N + np.arange(num_items), length_N + 1)


@dataclass(frozen=True)
class Level:
    """The edges below the branch states of one depth, in the order of their states and tokens.

    degree_S counts the edges of each state; is_leaf_G says behind which edge one distinct sequence is left;
    of those, seq_L is one with that sequence, count_L how many have it, item_I all of them.
    """

    token_G: np.ndarray
    degree_S: np.ndarray
    is_leaf_G: np.ndarray
    seq_L: np.ndarray
    count_L: np.ndarray
    item_I: np.ndarray


def next_level(
    sequences: Sequences, seq_A: np.ndarray, node_A: np.ndarray, depth: int, vocab_size: int
) -> tuple[Level, np.ndarray, np.ndarray]:
    """One level from the sequences that share each of its states; then those that still share one below."""
    num_states = int(node_A[-1]) + 1
    token_A = sequences.token_T[sequences.begin_N[seq_A] + depth].astype(np.int64)
    key_A, seq_A = sorted_by_key(node_A * vocab_size + token_A, seq_A)
    first_G = np.flatnonzero(np.concatenate(([True], key_A[1:] != key_A[:-1])))
    count_G = np.diff(np.append(first_G, len(key_A)))
    ended_G = np.add.reduceat(sequences.length_N[seq_A] == depth + 1, first_G, dtype=np.int64)
    check_no_prefix(ended_G, count_G, first_G, seq_A)
    is_leaf_G = (count_G == 1) | (ended_G > 0)
    is_leaf_A = np.repeat(is_leaf_G, count_G)
    level = Level(
        token_G=key_A[first_G] % vocab_size,
        degree_S=np.bincount(key_A[first_G] // vocab_size, minlength=num_states),
        is_leaf_G=is_leaf_G,
        seq_L=seq_A[first_G[is_leaf_G]],
        count_L=count_G[is_leaf_G],
        item_I=seq_A[is_leaf_A],
    )
    shared_G = count_G[~is_leaf_G]
    return level, seq_A[~is_leaf_A], np.repeat(np.arange(len(shared_G)), shared_G)


def sorted_by_key(key_A: np.ndarray, seq_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both by key, equal keys in their old order.

    Where key and place fit in one word, sorting those words is several times faster than a stable argsort.
    """
    place_bits = len(key_A).bit_length()
    if int(key_A.max()).bit_length() + place_bits > 64:
        order_A = np.argsort(key_A, kind="stable")
        return key_A[order_A], seq_A[order_A]
    word_A = (key_A.astype(np.uint64) << np.uint64(place_bits)) | np.arange(len(key_A), dtype=np.uint64)
    word_A.sort()
    order_A = (word_A & np.uint64((1 << place_bits) - 1)).astype(np.int64)
    return (word_A >> np.uint64(place_bits)).astype(np.int64), seq_A[order_A]


def check_no_prefix(ended_G: np.ndarray, count_G: np.ndarray, first_G: np.ndarray, seq_A: np.ndarray) -> None:
    mixed_G = (ended_G > 0) & (ended_G < count_G)
    if mixed_G.any():
        group = int(np.argmax(mixed_G))
        some = seq_A[first_G[group] : first_G[group] + count_G[group]][:5].tolist()
        raise ValueError(
            f"among the items {some} one is the beginning of another: give an end_token to tell them apart."
        )


def assemble(sequences: Sequences, levels: list[Level], end_token: int | None, vocab_size: int) -> TokenTrie:
    is_leaf_E = np.concatenate([level.is_leaf_G for level in levels])
    degree_S = np.concatenate([level.degree_S for level in levels])
    tail_token_T, leaf_slot_L = tails(sequences, levels, vocab_size)
    num_states = len(degree_S) + len(tail_token_T)
    if num_states > MAX_STATES:
        raise ValueError(
            f"the trie has {num_states} states, 32-bit states end at {MAX_STATES}: split the catalogue."
        )
    edge_target_E = np.empty(len(is_leaf_E), np.int32)
    edge_target_E[~is_leaf_E] = np.arange(1, len(degree_S))
    edge_target_E[is_leaf_E] = leaf_slot_L + len(degree_S)
    count_L = np.concatenate([level.count_L for level in levels])
    crowded_D = np.flatnonzero(count_L > 1)
    return TokenTrie(
        first_edge_S1=offsets(degree_S),
        edge_token_E=np.concatenate([level.token_G for level in levels]).astype(token_dtype(vocab_size)),
        edge_target_E=edge_target_E,
        tail_token_T=tail_token_T,
        leaves_before_K=leaves_before(tail_token_T),
        crowded_D=crowded_D.astype(np.int32),
        surplus_D1=offsets(count_L[crowded_D] - 1),
        item_N=np.concatenate([level.item_I for level in levels]).astype(np.int32),
        vocab_size=vocab_size,
        end_token=end_token,
    )


def tails(sequences: Sequences, levels: list[Level], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(tail tokens of all leaves one behind the other, each closed by END; first slot of each leaf)."""
    seq_L = np.concatenate([level.seq_L for level in levels])
    depth_L = np.repeat(np.arange(1, len(levels) + 1), [len(level.seq_L) for level in levels])
    rest_L = sequences.length_N[seq_L] - depth_L
    slot_L = np.concatenate(([0], np.cumsum(rest_L + 1)))
    dtype = token_dtype(vocab_size)
    tail_T = np.full(int(slot_L[-1]), end_mark(dtype), dtype)
    # token j of leaf l stands at begin + depth + j in the input and at slot + j here
    shift_L = sequences.begin_N[seq_L] + depth_L - slot_L[:-1]
    is_token_T = np.ones(len(tail_T), bool)
    is_token_T[slot_L[1:] - 1] = False
    place_T = np.flatnonzero(is_token_T)
    tail_T[place_T] = sequences.token_T[place_T + np.repeat(shift_L, rest_L)]
    return tail_T, slot_L[:-1]


def offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int32)


def token_dtype(vocab_size: int) -> np.dtype:
    """2 bytes where the largest value is left over for END, else 4."""
    return np.dtype(np.uint16 if vocab_size < 2**16 else np.uint32)
