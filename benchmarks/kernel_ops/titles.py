"""Real titles as token ids, and synthetic ones beyond them with the same branching."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from recloom.kernels.token_trie import TokenTrie
from recloom.kernels.trie_build import build_trie


@dataclass(frozen=True)
class Catalogue:
    """Sequences of token ids: sequence n is tokens_T[offsets_N1[n] : offsets_N1[n + 1]]."""

    tokens_T: np.ndarray
    offsets_N1: np.ndarray
    vocab_size: int
    end_token: int

    def __len__(self) -> int:
        return len(self.offsets_N1) - 1

    def lists(self) -> list[list[int]]:
        return [part.tolist() for part in np.split(self.tokens_T, self.offsets_N1[1:-1])]


def read_titles(data: Path) -> list[str]:
    """Titles of ML-1M, BookCrossing (subset), Amazon Beauty and Scientific, in files' order."""
    lines = (data / "ml-1m/movies.dat").read_text(encoding="latin-1").splitlines()
    titles = [line.split("::")[1] for line in lines]
    columns = {
        "bookcrossing-subset/BX-Books.csv": "Book-Title",
        "amazon2014-beauty/items.csv": "title",
        "amazon2018-scientific/items.csv": "title",
    }
    for name, column in columns.items():
        with open(data / name, encoding="utf-8", newline="") as file:
            titles += [row[column] for row in csv.DictReader(file)]
    return [title for title in titles if title and title.strip()]


def real_catalogue(data: Path) -> Catalogue:
    """The real titles under LLaMA-2's tokenizer, V = 32,000."""
    tokenizer = AutoTokenizer.from_pretrained(data / "llama2-tokenizer")
    ids = tokenizer(read_titles(data), add_special_tokens=False)["input_ids"]
    return catalogue_of(ids, len(tokenizer), tokenizer.eos_token_id)


def catalogue_of(ids: list[list[int]], vocab_size: int, end_token: int) -> Catalogue:
    lengths = np.array([len(sequence) for sequence in ids])
    tokens_T = np.fromiter((token for sequence in ids for token in sequence), np.int64, lengths.sum())
    return Catalogue(tokens_T, np.concatenate(([0], np.cumsum(lengths))), vocab_size, end_token)


def grown(real: Catalogue, size: int, seed: int) -> Catalogue:
    """The real titles, then crossings of them up to `size`: first tokens of one, the rest of another.

    A crossing leaves a real title at a random place where real titles still share their beginning, and
    goes on with the rest of another, so first tokens, lengths and single-child tails stay near those of
    real titles.
    """
    if size <= len(real):
        return Catalogue(
            real.tokens_T[: real.offsets_N1[size]],
            real.offsets_N1[: size + 1],
            real.vocab_size,
            real.end_token,
        )
    random = np.random.default_rng(seed)
    lengths_N = np.diff(real.offsets_N1)
    count = size - len(real)
    head_C, rest_C = random.integers(0, len(real), (2, count))
    kept_C = 1 + (random.random(count) * (shared_depth(real)[head_C] - 1)).astype(np.int64)
    from_C = np.minimum(kept_C, lengths_N[rest_C] - 1)
    lengths_C = kept_C + lengths_N[rest_C] - from_C
    offsets = np.concatenate((real.offsets_N1, real.offsets_N1[-1] + np.cumsum(lengths_C)))
    place_T = np.arange(lengths_C.sum()) - np.repeat(np.cumsum(lengths_C) - lengths_C, lengths_C)
    in_head_T = place_T < np.repeat(kept_C, lengths_C)
    head_T = np.repeat(real.offsets_N1[head_C], lengths_C) + place_T
    rest_T = np.repeat(real.offsets_N1[rest_C] + from_C - kept_C, lengths_C) + place_T
    source_T = np.where(in_head_T, np.minimum(head_T, len(real.tokens_T) - 1), rest_T)
    tokens_T = np.concatenate((real.tokens_T, real.tokens_T[source_T]))
    return Catalogue(tokens_T, offsets, real.vocab_size, real.end_token)


def trie_of_catalogue(catalogue: Catalogue) -> TokenTrie:
    words, end = catalogue.vocab_size, catalogue.end_token
    return build_trie(catalogue.tokens_T, catalogue.offsets_N1, end_token=end, vocab_size=words)


def shared_depth(catalogue: Catalogue) -> np.ndarray:
    """How many tokens of each title, one more at least, tell it from all others."""
    trie = trie_of_catalogue(catalogue)
    tail_L = np.diff(np.append(trie.leaf_slot_L, len(trie.tail_token_T))) - 1
    depth_N = np.diff(catalogue.offsets_N1) + 1 - tail_L[trie.edge_into.leaf_of_item_N]
    return np.minimum(depth_N, np.diff(catalogue.offsets_N1))
