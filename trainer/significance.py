"""Spread over seeds, and the paired t-test behind the stars of a results table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.05


@dataclass(frozen=True)
class PairedTest:
    """difference: mean of ours - baseline, in the metric's unit; p_value: two-sided."""

    difference: float
    statistic: float
    p_value: float

    @property
    def star(self) -> bool:
        """True when the two differ at p <= 0.05, whichever is better."""
        return self.p_value <= LEVEL


def paired_t_test(ours_N: np.ndarray, baseline_N: np.ndarray) -> PairedTest:
    """Paired t-test of equally many values, paired by user (or by seed).

    Equal values everywhere give p = 1, one constant non-zero difference gives p = 0. Raises ValueError
    for unequal lengths, fewer than two pairs, or a value that is not finite.
    """
    ours_N, baseline_N = np.asarray(ours_N, dtype=np.float64), np.asarray(baseline_N, dtype=np.float64)
    if ours_N.shape != baseline_N.shape or ours_N.ndim != 1 or len(ours_N) < 2:
        raise ValueError(f"a paired test needs two equal rows of 2 or more values, got {ours_N.shape}, "
                         f"{baseline_N.shape}.")  # fmt: skip
    difference_N = ours_N - baseline_N
    if not np.isfinite(difference_N).all():
        raise ValueError("a paired test needs finite values.")
    mean = float(difference_N.mean())
    if np.ptp(difference_N) == 0:
        return PairedTest(mean, math.copysign(math.inf, mean) if mean else 0.0, 0.0 if mean else 1.0)
    result = stats.ttest_rel(ours_N, baseline_N)
    return PairedTest(mean, float(result.statistic), float(result.pvalue))


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds; the deviation of a single seed is nan (unknown)."""
    if len(values) == 0:
        raise ValueError("no values to average.")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
