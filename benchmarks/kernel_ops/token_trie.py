"""Building the trie of tokenised titles, against nested dictionaries as users of transformers build them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kernel_ops.case import Case
from kernel_ops.titles import Catalogue, grown, real_catalogue, trie_of_catalogue

LARGE = 1_000_000


def cases(device: str, data: Path) -> Iterator[Case]:
    real = real_catalogue(data)
    for size in (10_000, len(real)):
        some = grown(real, size, seed=0)
        yield case("nested dictionaries", some, dictionaries(some))
    yield case(f"ours, {len(real)} items", grown(real, LARGE, seed=0), partial(trie_of_catalogue, real))


def case(peer: str, catalogue: Catalogue, theirs: Callable[[], Any]) -> Case:
    trie = trie_of_catalogue(catalogue)
    tokens = len(catalogue.tokens_T) / len(catalogue)
    labels = {"bytes_an_item": f"{trie.nbytes / trie.num_items:.1f}", "tokens_a_title": f"{tokens:.1f}"}
    shape = f"items={len(catalogue)} V={catalogue.vocab_size}"
    mine = partial(trie_of_catalogue, catalogue)
    return Case("token_trie build", peer, shape, "int64", mine, theirs, trie.check, trie.nbytes, labels)


def dictionaries(catalogue: Catalogue) -> Callable[[], dict[int, Any]]:
    titles = catalogue.lists()

    def run() -> dict[int, Any]:
        root: dict[int, Any] = {}
        for title in titles:
            node = root
            for token in (*title, catalogue.end_token):
                node = node.setdefault(token, {})
        return root

    return run
