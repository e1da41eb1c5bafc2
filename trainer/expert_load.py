"""When the experts of a router have collapsed: what a training warns of and the report shows.

Shapes: K experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

COLLAPSED_SHARE = 0.9


def collapsed_expert(share_K: Sequence[float] | np.ndarray) -> int | None:
    """The one of several experts that takes nine users of ten or more. Give it the shares of many users."""
    if len(share_K) < 2:
        return None
    expert = int(np.argmax(share_K))
    return expert if share_K[expert] >= COLLAPSED_SHARE else None
