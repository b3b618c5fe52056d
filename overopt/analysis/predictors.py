"""What a number measured before optimisation says of what optimisation will do.

Each of R runs has predictors (accuracy, loss, …), a target (the peak of gold, …), what was known anyway
(size, data), and a replicate. A predictor is asked three questions: does it order the runs as the target
does; does it still where what was known anyway is held fixed; and does it foretell the target of a
replicate that it was not fitted to better than what was known anyway does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A value with its percentile interval over draws of runs."""

    value: float
    low: float
    high: float


def rank_correlation(x: Floats, y: Floats) -> float:
    """Spearman's ρ of two columns (R,); nan where one of them is constant."""
    return _correlation(rankdata(x), rankdata(y))


def partial_rank_correlation(x: Floats, y: Floats, given: Floats) -> float:
    """Correlation of what is left of the ranks of two columns (R,), ``given`` (R, K) others.

    Both are regressed on the ranks of the columns of ``given``, with a constant.
    """
    known = np.column_stack([np.ones(len(x)), *(rankdata(column) for column in given.T)])
    left = []
    for column in (rankdata(x), rankdata(y)):
        fitted = known @ np.linalg.lstsq(known, column, rcond=None)[0]
        rest = column - fitted
        # What is left of a column that the others determine is rounding.
        left.append(np.where(np.abs(rest) < 1e-9 * len(x), 0.0, rest))
    return _correlation(*left)


def _correlation(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size > 0 else math.nan


def out_of_sample_r2(features: Floats, target: Floats, groups: NDArray) -> float:
    """Share of the target's variance that a line foretells in groups that it was not fitted to.

    features (R, K), target (R,), groups (R,): each group is left out once, a line with a constant is
    fitted to the others by least squares, and 1 − Σ (y − ŷ)² / Σ (y − ȳ)² is taken over all that was
    left out, with ȳ the mean of the others. 0 or below: worse than the mean of the others.
    """
    error = total = 0.0
    for group in np.unique(groups):
        test = groups == group
        design = np.column_stack([np.ones((~test).sum()), features[~test]])
        line = np.linalg.lstsq(design, target[~test], rcond=None)[0]
        foretold = np.column_stack([np.ones(test.sum()), features[test]]) @ line
        error += float(((target[test] - foretold) ** 2).sum())
        total += float(((target[test] - target[~test].mean()) ** 2).sum())
    return 1 - error / total if total > 0 else math.nan


def over_groups(
    statistic: Callable[[NDArray[np.int_]], float],
    groups: NDArray,
    *,
    rng: np.random.Generator,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """``statistic`` of the rows, with its interval over draws of whole groups with replacement.

    Runs that share data or settings are no independent rows, so groups are drawn.
    """
    names = np.unique(groups)
    rows = {name: np.flatnonzero(groups == name) for name in names}
    found = []
    for picks in rng.integers(len(names), size=(draws, len(names))):
        found.append(statistic(np.concatenate([rows[names[p]] for p in picks])))
    value = statistic(np.arange(len(groups)))
    if not np.isfinite(found).any():
        return Interval(value, math.nan, math.nan)
    low, high = np.nanquantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, float(low), float(high))


def tail_index(errors: Floats, *, share: float = 0.05) -> float:
    """Hill's estimate of how fast the upper tail of ``errors`` falls: P(error > x) ~ x^−α.

    From the largest ``share`` of the values (Hill 1975): α = k / Σ log(x_i / x_(k+1)). Small values are
    heavy tails, under which best-of-n finds errors instead of quality. nan where x_(k+1) is not
    positive.
    """
    x = np.sort(errors)[::-1]
    k = max(1, int(share * len(x)))
    if len(x) <= k or x[k] <= 0:
        return math.nan
    return float(k / np.log(x[:k] / x[k]).sum()) if x[0] > x[k] else math.inf
