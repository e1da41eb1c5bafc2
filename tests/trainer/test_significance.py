"""The paired t-test against its formula, and the spread over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import betainc

from recloom.trainer.significance import mean_std, paired_t_test


def p_value_by_formula(difference_N: np.ndarray) -> tuple[float, float]:
    """Student's t and its two-sided p through the incomplete beta function."""
    freedom = len(difference_N) - 1
    spread = math.sqrt(((difference_N - difference_N.mean()) ** 2).sum() / freedom)
    t = difference_N.mean() / (spread / math.sqrt(len(difference_N)))
    return t, float(betainc(freedom / 2, 0.5, freedom / (freedom + t * t)))


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.5])
def test_equals_the_formula(shift: float) -> None:
    rng = np.random.default_rng(3)
    baseline_N = rng.normal(size=200)
    ours_N = baseline_N + rng.normal(shift, 0.3, size=200)
    test = paired_t_test(ours_N, baseline_N)
    t, p = p_value_by_formula(ours_N - baseline_N)
    assert test.statistic == pytest.approx(t)
    assert test.p_value == pytest.approx(p)
    assert test.difference == pytest.approx((ours_N - baseline_N).mean())
    assert test.star == (p <= 0.05)


def test_stars_where_they_belong() -> None:
    rng = np.random.default_rng(0)
    noise_N = rng.normal(size=500)
    assert paired_t_test(noise_N + 0.2 + 0.1 * rng.normal(size=500), noise_N).star
    assert not paired_t_test(rng.permutation(noise_N), noise_N).star


def test_constant_differences() -> None:
    values_N = np.array([0.0, 1.0, 0.0])
    same = paired_t_test(values_N, values_N)
    assert (same.difference, same.statistic, same.p_value, same.star) == (0.0, 0.0, 1.0, False)
    lower = paired_t_test(values_N - 1, values_N)
    assert (lower.difference, lower.statistic, lower.p_value, lower.star) == (-1.0, -math.inf, 0.0, True)


@pytest.mark.parametrize(
    ("ours", "baseline"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 2.0])]
)
def test_bad_rows_are_refused(ours: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError, match="paired test needs"):
        paired_t_test(np.array(ours), np.array(baseline))


def test_mean_and_spread() -> None:
    assert mean_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    mean, spread = mean_std([0.5])
    assert mean == 0.5 and math.isnan(spread)
    with pytest.raises(ValueError, match="no values"):
        mean_std([])
