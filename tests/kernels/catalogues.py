"""Random catalogues for the trie's tests: duplicates, prefixes of each other, one-token items."""

from __future__ import annotations

from hypothesis import strategies as st

from recloom.kernels.token_trie import TokenTrie
from recloom.kernels.trie_build import trie_of

END = 1
VOCAB = 12

# few tokens and short sequences: most catalogues hold items that are equal or begin one another
sequences = st.lists(st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=5), min_size=1, max_size=25)


def spelled(items: list[list[int]]) -> list[tuple[int, ...]]:
    return [(*item, END) for item in items]


def children_of(items: list[list[int]], prefix: tuple[int, ...]) -> list[int]:
    """What may follow `prefix`, the slow way."""
    depth = len(prefix)
    return sorted({item[depth] for item in spelled(items) if item[:depth] == prefix and len(item) > depth})


def build(items: list[list[int]]) -> TokenTrie:
    return trie_of(items, end_token=END, vocab_size=VOCAB)
