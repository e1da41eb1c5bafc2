"""One request's way through a trie, token by token, for engines that ask for a mask at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from recloom.kernels.token_trie import ROOT, TokenTrie
from recloom.kernels.trie_build import trie_of
from recloom.kernels.trie_restrictions import Items, Restrictions, permitted_children, restrict


class Cursor(Protocol):
    def allowed(self) -> np.ndarray:
        """The tokens that may follow, ascending; empty when all is said."""
        ...

    def advance(self, token: int) -> None:
        """Go on by one token. ValueError for one that is not allowed."""
        ...


class ItemCursor:
    """Spells one item of the catalogue, of those permitted."""

    def __init__(self, trie: TokenTrie, allowed: Items = None, excluded: Items = None) -> None:
        self.trie = trie
        self.state = ROOT
        limited = allowed is not None or (excluded is not None and len(excluded) > 0)
        self.limits: Restrictions | None = None
        if limited:
            self.limits = restrict(trie, allowed=[allowed], excluded=[excluded])

    def allowed(self) -> np.ndarray:
        return permitted_children(self.trie, self.state, self.limits, 0)[0]

    def advance(self, token: int) -> None:
        if token not in self.allowed():
            raise ValueError(f"token {token} is not allowed here: {self.allowed()[:10].tolist()} are.")
        self.state = self.trie.walk([token], self.state)

    def items(self) -> list[int]:
        """The permitted items spelled; empty before the end."""
        if not self.trie.is_end(self.state):
            return []
        found = self.trie.items_at(self.state)
        return (found if self.limits is None else self.limits.permitted_items(0, found)).tolist()


class ListCursor:
    """Spells `count` different choices one behind the other.

    Choice n is spelled by inner[n], as the final one by last[n]: a line with its line end, and without one
    but with the end token. No spelling may be a proper prefix of another of its kind.
    """

    def __init__(
        self, inner: Sequence[Sequence[int]], last: Sequence[Sequence[int]], count: int, vocab_size: int
    ) -> None:
        if not 1 <= count <= len(inner) or len(inner) != len(last):
            raise ValueError(
                f"count is {count} of {len(inner)} inner and {len(last)} last choices: take 1 to all of them."
            )
        self.inner = trie_of(inner, end_token=None, vocab_size=vocab_size)
        self.last = trie_of(last, end_token=None, vocab_size=vocab_size)
        self.count = count
        self.chosen: list[int] = []
        self.cursor = self.next_cursor()

    def next_cursor(self) -> ItemCursor | None:
        if len(self.chosen) == self.count:
            return None
        final = len(self.chosen) == self.count - 1
        return ItemCursor(self.last if final else self.inner, excluded=self.chosen)

    def allowed(self) -> np.ndarray:
        return np.empty(0, np.int64) if self.cursor is None else self.cursor.allowed()

    def advance(self, token: int) -> None:
        if self.cursor is None:
            raise ValueError(f"token {token} follows the last of {self.count} choices: nothing may.")
        self.cursor.advance(token)
        found = self.cursor.items()
        if found:
            self.chosen.append(found[0])
            self.cursor = self.next_cursor()


@dataclass
class Row:
    """A cursor, what the engine has generated for it, and how much of that the cursor has gone along."""

    cursor: Cursor
    generated: Sequence[int]
    num_read: int = 0

    def allowed(self) -> np.ndarray:
        for token in self.generated[self.num_read :]:
            self.cursor.advance(int(token))
        self.num_read = len(self.generated)
        return self.cursor.allowed()


class CursorBatch:
    """The cursors of a running batch, by row, and the tokens that its rows have generated."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}

    def add(self, row: int, cursor: Cursor | None, generated: Sequence[int]) -> None:
        """A request takes the row; `generated` is the engine's own growing list. None: no constraint."""
        self.remove(row)
        if cursor is not None:
            self.rows[row] = Row(cursor, generated)

    def remove(self, row: int) -> None:
        self.rows.pop(row, None)

    def move(self, source: int, target: int, swap: bool) -> None:
        moved, replaced = self.rows.pop(source, None), self.rows.pop(target, None)
        if moved is not None:
            self.rows[target] = moved
        if swap and replaced is not None:
            self.rows[source] = replaced

    def mask(self, logits_RV: torch.Tensor) -> torch.Tensor:
        """-inf in place for all tokens but the allowed ones; a row that has said all stays as it is."""
        for number, row in self.rows.items():
            allowed = torch.from_numpy(row.allowed()).to(logits_RV.device)
            if len(allowed):
                kept = logits_RV[number, allowed]
                logits_RV[number] = -torch.inf
                logits_RV[number, allowed] = kept
        return logits_RV
