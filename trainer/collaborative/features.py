"""Attribute columns as categorical fields: values become indices, several values an averaged bag.

Rules, the same for every data set:
- "A|B" holds two values; each gets half of the weight.
- A missing value (null or empty) has an index of its own.
- A column of numbers with over 20 distinct values is cut into ten quantile bins.
- Of a column named like a zip code only the first character is kept: its region.
- A value that fewer than 3 rows carry joins the "rare" index.
- A column is skipped when it tells rows apart for fewer than one row in ten.

Shapes: E rows (users or items), S slots (a field takes as many as its longest bag), F fields.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

MISSING, RARE = "", "\0rare"
MIN_ROWS, MIN_SHARE = 3, 0.1
MAX_NUMBERS, NUM_BINS = 20, 10


@dataclass(frozen=True)
class FeatureTable:
    """Encoded attributes of all users or all items.

    index_ES: int64 value index, 0 = unused slot, 1.. = values of all fields in one numbering.
    weight_ES: float32, 1 / (values in the bag), 0 in unused slots. field_S: the field of a slot.
    vocabulary: index -> (field name, value); entry 0 is the unused slot.
    """

    fields: tuple[str, ...]
    index_ES: np.ndarray
    weight_ES: np.ndarray
    field_S: np.ndarray
    vocabulary: tuple[tuple[str, str], ...]

    @property
    def num_values(self) -> int:
        """Size of the numbering, the unused slot included."""
        return len(self.vocabulary)


def encode_features(table: pa.Table, skip: tuple[str, ...] = ()) -> FeatureTable:
    """Encode every column of `table` that is not in `skip`; the result does not depend on row order."""
    vocabulary: list[tuple[str, str]] = [("", "")]
    fields: list[str] = []
    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    for name in [column for column in table.column_names if column not in skip]:
        bags = merge_rare(column_bags(name, table[name].to_pylist()))
        if not is_useful(bags):
            continue
        values = sorted({value for bag in bags for value in bag})
        index = {value: len(vocabulary) + number for number, value in enumerate(values)}
        vocabulary += [(name, value) for value in values]
        fields.append(name)
        blocks.append(encode_bags(bags, index))
    return assemble(fields, blocks, vocabulary, table.num_rows)


def column_bags(name: str, cells: list[object]) -> list[list[str]]:
    """The values of every row, at least one: MISSING stands for none."""
    texts = ["" if cell is None else str(cell) for cell in cells]
    if "zip" in name.lower():
        return [[text.strip()[:1]] for text in texts]
    bags = [sorted({part.strip() for part in text.split("|") if part.strip()}) for text in texts]
    return bin_numbers([bag or [MISSING] for bag in bags])


def bin_numbers(bags: list[list[str]]) -> list[list[str]]:
    """Numbers with many distinct values become quantile bins; anything else stays as it is."""
    try:
        numbers = [None if bag == [MISSING] else float("|".join(bag)) for bag in bags]
    except ValueError:
        return bags
    known = np.array([number for number in numbers if number is not None])
    if len(set(known.tolist())) <= MAX_NUMBERS or not np.isfinite(known).all():
        return bags
    edges = np.unique(np.quantile(known, np.arange(1, NUM_BINS) / NUM_BINS))
    return [
        [MISSING] if number is None else [f"bin {np.searchsorted(edges, number, side='right')}"]
        for number in numbers
    ]


def merge_rare(bags: list[list[str]]) -> list[list[str]]:
    """Replace values of fewer than MIN_ROWS rows by RARE."""
    counts = Counter(value for bag in bags for value in bag)
    keep = {value for value, count in counts.items() if count >= MIN_ROWS or value == MISSING}
    return [sorted({value if value in keep else RARE for value in bag}) for bag in bags]


def is_useful(bags: list[list[str]]) -> bool:
    """False for a column with one value, or one whose rows are nearly all rare or missing."""
    told_apart = sum(bool(set(bag) - {RARE, MISSING}) for bag in bags)
    return len({tuple(bag) for bag in bags}) > 1 and told_apart >= MIN_SHARE * len(bags)


def encode_bags(bags: list[list[str]], index: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Index and weight arrays of one field, as wide as its longest bag."""
    width = max(len(bag) for bag in bags)
    index_ES = np.zeros((len(bags), width), dtype=np.int64)
    weight_ES = np.zeros((len(bags), width), dtype=np.float32)
    for row, bag in enumerate(bags):
        index_ES[row, : len(bag)] = [index[value] for value in bag]
        weight_ES[row, : len(bag)] = 1 / len(bag)
    return index_ES, weight_ES


def assemble(
    fields: list[str],
    blocks: list[tuple[np.ndarray, np.ndarray]],
    vocabulary: list[tuple[str, str]],
    num_rows: int,
) -> FeatureTable:
    """Put the fields side by side."""
    indices = [np.zeros((num_rows, 0), np.int64), *(index_ES for index_ES, _ in blocks)]
    weights = [np.zeros((num_rows, 0), np.float32), *(weight_ES for _, weight_ES in blocks)]
    field_S = np.repeat(np.arange(len(blocks), dtype=np.int64), [b.shape[1] for b, _ in blocks])
    return FeatureTable(
        tuple(fields), np.concatenate(indices, 1), np.concatenate(weights, 1), field_S, tuple(vocabulary)
    )
