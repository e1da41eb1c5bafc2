"""Fits over measured points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """e of the fit time = c * size^e."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
