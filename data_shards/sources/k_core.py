"""The k-core of a data set, for the sources that filter users and items."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recloom.data_shards.errors import UserError


def key_codes(key_N: pa.ChunkedArray) -> np.ndarray:
    """Small integers that are equal where the keys are."""
    return pc.index_in(key_N, value_set=key_N.unique()).to_numpy()


def k_core(name: str, rows: pa.Table, min_interactions: int) -> pa.Table:
    """Drop users and items with fewer than `min_interactions` rows until none is left to drop.

    `rows` have user_key and item_key. Raises UserError, with the display name `name`, when no row is left.
    """
    while True:
        enough_N = np.ones(rows.num_rows, bool)
        for column in ("user_key", "item_key"):
            code_N = key_codes(rows[column])
            enough_N &= np.bincount(code_N)[code_N] >= min_interactions
        if enough_N.all():
            return rows
        rows = rows.filter(pa.array(enough_N))
        if rows.num_rows == 0:
            raise UserError(
                f"data.min_interactions is {min_interactions}, which leaves no interaction of "
                f"{name}: lower it."
            )
