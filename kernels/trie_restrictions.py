"""Which items each request may get: all but those a user has seen, or only a set of candidates.

The trie itself stays as it is. A restriction is a sorted list of edges: those that lead to no item any more
(for exclusions), or those that still lead to one (for candidates); a step searches it for an edge that would
be taken. Tails need no look, since the edge into a tail decides about its items.

Shape letters as in `token_trie.py`; B requests, P (request, item) or (request, edge) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recloom.kernels.token_trie import TokenTrie

Items = Sequence[int] | np.ndarray | None


@dataclass(frozen=True)
class Restrictions:
    """Row b's edges, ascending, are edge_P[offset_B1[b] : offset_B1[b + 1]]: the only ones it may take
    (only_B[b]), or those it must not.

    item_P, with item_offset_B1, are the items behind the same choice, to tell apart items of one leaf.
    """

    offset_B1: np.ndarray
    edge_P: np.ndarray
    only_B: np.ndarray
    item_offset_B1: np.ndarray
    item_P: np.ndarray

    def __len__(self) -> int:
        return len(self.only_B)

    def permits(self, request: int, edges: np.ndarray) -> np.ndarray:
        """For each edge, whether request `request` may take it."""
        return self._chosen(self.edge_P, self.offset_B1, request, edges) == self.only_B[request]

    def permitted_items(self, request: int, items: np.ndarray) -> np.ndarray:
        return items[self._chosen(self.item_P, self.item_offset_B1, request, items) == self.only_B[request]]

    @staticmethod
    def _chosen(values_P: np.ndarray, offset_B1: np.ndarray, request: int, wanted: np.ndarray) -> np.ndarray:
        own = values_P[offset_B1[request] : offset_B1[request + 1]]
        place = np.searchsorted(own, wanted)
        found = np.zeros(len(wanted), bool)
        inside = place < len(own)
        found[inside] = own[place[inside]] == wanted[inside]
        return found

    def rows(self, requests_X: np.ndarray) -> Restrictions:
        """The restrictions of these requests, in this order, repetitions allowed."""
        parts = [(self.offset_B1, self.edge_P), (self.item_offset_B1, self.item_P)]
        (offsets, edges), (item_offsets, items) = (
            taken(start, values, requests_X) for start, values in parts
        )
        return Restrictions(offsets, edges, self.only_B[requests_X], item_offsets, items)


def taken(offset_B1: np.ndarray, values_P: np.ndarray, rows_X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts_X = np.diff(offset_B1)[rows_X]
    new_offset = np.concatenate(([0], np.cumsum(counts_X)))
    places = np.arange(new_offset[-1]) + np.repeat(offset_B1[:-1][rows_X] - new_offset[:-1], counts_X)
    return new_offset, values_P[places]


def restrict(
    trie: TokenTrie, *, allowed: Sequence[Items] | None = None, excluded: Sequence[Items] | None = None
) -> Restrictions:
    """One row a request: its candidate items (None: all items) less the items it must not get (None: none).

    Errors: ValueError when both lists are absent or differ in length, an item is not in the trie, or a
    request has no item left.
    """
    rows = request_items(trie, allowed, excluded)
    only_B = np.array([only for _, only in rows], bool)
    counts = [len(items) for items, _ in rows]
    item_P = np.concatenate([items for items, _ in rows]).astype(np.int64)
    request_P = np.repeat(np.arange(len(rows)), counts)
    is_only_P = only_B[request_P]
    open_pairs = open_edges(trie, request_P[is_only_P], item_P[is_only_P])
    shut_pairs = shut_edges(trie, request_P[~is_only_P], item_P[~is_only_P])
    request_E = np.concatenate((open_pairs[0], shut_pairs[0]))
    edge_E = np.concatenate((open_pairs[1], shut_pairs[1]))
    order = np.lexsort((edge_E, request_E))
    return Restrictions(
        offset_B1=np.concatenate(([0], np.cumsum(np.bincount(request_E, minlength=len(rows))))),
        edge_P=edge_E[order].astype(np.int32),
        only_B=only_B,
        item_offset_B1=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        item_P=item_P,
    )


def permitted_children(
    trie: TokenTrie, state: int, limits: Restrictions | None, request: int
) -> tuple[np.ndarray, np.ndarray]:
    """`TokenTrie.children`, less what the request must not take."""
    tokens, states = trie.children(state)
    if limits is None or state >= trie.num_branch_states:
        return tokens, states
    first = int(trie.first_edge_S1[state])
    fine = limits.permits(request, np.arange(first, first + len(tokens)))
    return tokens[fine], states[fine]


def request_items(
    trie: TokenTrie, allowed: Sequence[Items] | None, excluded: Sequence[Items] | None
) -> list[tuple[np.ndarray, bool]]:
    """(distinct items ascending, whether only these are allowed) of each request."""
    given = [rows for rows in (allowed, excluded) if rows is not None]
    if not given or len({len(rows) for rows in given}) > 1 or not len(given[0]):
        raise ValueError(
            "give `allowed`, `excluded` or both, each with one entry a request (None for no limit)."
        )
    found = []
    for request in range(len(given[0])):
        candidates = allowed[request] if allowed is not None else None
        unwanted = distinct_items(
            trie, excluded[request] if excluded is not None else None, "excluded", request
        )
        if candidates is None:
            found.append((unwanted, False))
            continue
        left = np.setdiff1d(
            distinct_items(trie, candidates, "allowed", request), unwanted, assume_unique=True
        )
        if not len(left):
            raise no_item_left(request)
        found.append((left, True))
    return found


def distinct_items(trie: TokenTrie, items: Items, field: str, request: int) -> np.ndarray:
    distinct = np.unique(np.asarray([] if items is None else items, dtype=np.int64))
    if len(distinct) and (distinct[0] < 0 or distinct[-1] >= trie.num_items):
        raise ValueError(
            f"{field}[{request}] holds item {distinct[0] if distinct[0] < 0 else distinct[-1]}: "
            f"the trie's items are 0 to {trie.num_items - 1}."
        )
    return distinct


def no_item_left(request: int) -> ValueError:
    return ValueError(f"request {request} has no item left: allow one more, or exclude fewer.")


def parent_edges(trie: TokenTrie, edge_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(state each edge leaves from, edge into that state or -1 for the root)."""
    state_P = np.searchsorted(trie.first_edge_S1, edge_P, side="right") - 1
    return state_P, trie.edge_into.branch_S[state_P]


def open_edges(trie: TokenTrie, request_P: np.ndarray, item_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (request, edge) pairs on the paths to the request's items."""
    into = trie.edge_into
    num_edges = len(trie.edge_token_E)
    pairs = np.unique(request_P * num_edges + into.leaf_L[into.leaf_of_item_N[item_P]])
    found = [pairs]
    while len(pairs):
        _, edges = parent_edges(trie, pairs % num_edges)
        inner = edges >= 0
        pairs = np.unique((pairs // num_edges)[inner] * num_edges + edges[inner])
        found.append(pairs)
    merged = np.unique(np.concatenate(found))
    return merged // num_edges, merged % num_edges


def shut_edges(trie: TokenTrie, request_P: np.ndarray, item_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (request, edge) pairs behind which every item is the request's: from full leaves upwards."""
    into = trie.edge_into
    num_leaves, num_edges = len(into.leaf_L), len(trie.edge_token_E)
    leaf_pairs, counts = np.unique(request_P * num_leaves + into.leaf_of_item_N[item_P], return_counts=True)
    leaf = leaf_pairs % num_leaves
    full = counts == trie.first_items(leaf + 1) - trie.first_items(leaf)
    shut = (leaf_pairs // num_leaves)[full] * num_edges + into.leaf_L[leaf[full]]
    degree_S = np.diff(trie.first_edge_S1.astype(np.int64))
    while True:
        states, _ = parent_edges(trie, shut % num_edges)
        state_pairs, counts = np.unique(
            (shut // num_edges) * trie.num_branch_states + states, return_counts=True
        )
        requests, states = np.divmod(state_pairs, trie.num_branch_states)
        closed = counts == degree_S[states]
        if (states[closed] == 0).any():
            raise no_item_left(int(requests[closed & (states == 0)][0]))
        grown = np.union1d(shut, requests[closed] * num_edges + into.branch_S[states[closed]])
        if len(grown) == len(shut):
            return shut // num_edges, shut % num_edges
        shut = grown
