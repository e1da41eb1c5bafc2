"""Methods compared user by user: paired tests, and the metric by activity of the users.

Shapes: U users that every method of a task has a value for, B bins of users.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recloom.trainer.report.results import LOWER_IS_BETTER, Group, is_standard, metric_order
from recloom.trainer.significance import PairedTest, paired_t_test

NUM_BINS = 5


@dataclass(frozen=True)
class UserValues:
    """One metric of one task, user by user; values_U of every method are in the same user order.

    ours: the method that is compared with the others, None where none of the system's is there.
    """

    metric: str
    num_interactions_U: np.ndarray
    values_U: dict[str, np.ndarray]
    ours: str | None = None

    @property
    def num_users(self) -> int:
        return len(self.num_interactions_U)


@dataclass(frozen=True)
class Comparison:
    """`ours` against `baseline`, paired by user; better: None when the two are equal on average."""

    ours: str
    baseline: str
    metric: str
    num_users: int
    test: PairedTest

    @property
    def better(self) -> bool | None:
        if self.test.difference == 0:
            return None
        return (self.test.difference < 0) == (self.metric in LOWER_IS_BETTER)

    @property
    def p_text(self) -> str:
        return "p < 0.001" if self.test.p_value < 0.001 else f"p = {self.test.p_value:.3f}"


@dataclass(frozen=True)
class Bin:
    """Users of similar activity: mean and standard error (nan for one user) by method."""

    label: str
    num_users: int
    means: dict[str, float]
    errors: dict[str, float]


def user_values(per_user: pa.Table, group: Group, metric: str | None = None) -> UserValues | None:
    """A group's rows of per_user.parquet, averaged over seeds; None when it has none of `metric`.

    Without `metric`, the system's headline is taken, else absolute error or NDCG at the largest k.
    """
    rows = per_user.filter(
        (pc.field("task") == group.task)
        & (pc.field("backbone") == group.backbone)
        & (pc.field("scenario") == group.scenario)
        & pc.field("method").isin(list(group.methods))
    )
    metrics: set[str] = set(rows["metric"].to_pylist())
    wanted = metric or main_metric(metrics, group.view.headline)
    if wanted not in metrics:
        return None
    rows = rows.filter(pc.field("metric") == wanted)
    means = rows.group_by(["method", "user"]).aggregate([("value", "mean"), ("num_interactions", "min")])
    methods = [method for method in group.methods if method in set(means["method"].to_pylist())]
    found = {method: by_user(means.filter(pc.field("method") == method)) for method in methods}
    users_U = sorted(set.intersection(*(set(values) for values in found.values())))
    return UserValues(
        metric=wanted,
        num_interactions_U=np.array([found[methods[0]][user][1] for user in users_U], dtype=np.int64),
        values_U={m: np.array([found[m][user][0] for user in users_U], dtype=np.float64) for m in methods},
        ours=next((method for method in group.view.ours if method in methods), None),
    )


def main_metric(metrics: Collection[str], headline: str) -> str:
    """One that every method has: a system's own metrics are not measured of the backbone."""
    if headline in metrics:
        return headline
    return max(filter(is_standard, metrics), key=metric_order, default="")


def by_user(rows: pa.Table) -> dict[int, tuple[float, int]]:
    pairs = zip(rows["value_mean"].to_pylist(), rows["num_interactions_min"].to_pylist(), strict=True)
    return dict(zip(rows["user"].to_pylist(), pairs, strict=True))


def compare_methods(values: UserValues) -> list[Comparison]:
    """The system against every other method, paired by user."""
    ours = values.ours
    if ours is None or ours not in values.values_U or values.num_users < 2:
        return []
    return [
        Comparison(
            ours, other, values.metric, values.num_users, paired_t_test(values.values_U[ours], other_U)
        )
        for other, other_U in values.values_U.items()
        if other != ours
    ]


def activity_bins(values: UserValues, num_bins: int = NUM_BINS) -> list[Bin]:
    """Users in bins of about equal size, the least active first; equal counts are never parted."""
    counts_U = values.num_interactions_U
    edges = np.unique(np.quantile(counts_U, np.linspace(0, 1, num_bins + 1)[1:-1], method="inverted_cdf"))
    bin_U = np.searchsorted(edges, counts_U, side="left")
    return [make_bin(values, bin_U == index) for index in np.unique(bin_U)]


def make_bin(values: UserValues, inside_U: np.ndarray) -> Bin:
    counts = values.num_interactions_U[inside_U]
    low, high, num_users = int(counts.min()), int(counts.max()), len(counts)
    own = {method: values_U[inside_U] for method, values_U in values.values_U.items()}
    return Bin(
        label=f"{low}" if low == high else f"{low}–{high}",
        num_users=num_users,
        means={method: float(part.mean()) for method, part in own.items()},
        errors={method: standard_error(part) for method, part in own.items()},
    )


def standard_error(values_N: Sequence[float] | np.ndarray) -> float:
    if len(values_N) < 2:
        return float("nan")
    return float(np.std(values_N, ddof=1) / np.sqrt(len(values_N)))
