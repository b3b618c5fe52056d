"""How runs spread: mean and median, the share below a line, and whether they form two clusters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from overopt.base.errors import DataError
from overopt.base.seeding import numpy_rng
from overopt.fits.forms import Array
from overopt.fits.peaks import NO_INTERVAL, Interval

CLUSTER_DRAWS = 9999
FEWEST_FOR_CLUSTERS = 4
"""Values below which every sample splits into two clusters."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One value a run, over runs."""

    n: int
    mean: float
    median: float
    sd: float
    """Standard deviation over runs (ddof 1); nan for one."""
    sd_ci: Interval
    """95 % interval of it, for normal values (χ²)."""
    n_below: int
    """Runs below the line: those that collapsed."""
    share_below: float
    share_ci: Interval
    """95 % interval of the share (Clopper and Pearson 1934)."""
    p_clusters: float
    """p-value of `two_clusters`; nan for fewer than `FEWEST_FOR_CLUSTERS` runs."""


def spread(values: ArrayLike, *, below: float = 0.0, ci_level: float = 0.95) -> Spread:
    """Spread of values, one a run, and the share of them below ``below``.

    Where ``p_clusters`` is small, or the share is neither near 0 nor near 1, the mean describes no
    run: report the median and the share beside it.

    Raises
    ------
    DataError
        No value, or one that is not finite.
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise DataError(f"values of shape {x.shape}: give one finite number a run")
    n, n_below = len(x), int((x < below).sum())
    tail = (1.0 - ci_level) / 2.0
    sd = float(x.std(ddof=1)) if n > 1 else np.nan
    ends = [sd * np.sqrt((n - 1) / stats.chi2.ppf(q, n - 1)) for q in (1 - tail, tail) if n > 1]
    share = stats.binomtest(n_below, n).proportion_ci(ci_level)
    return Spread(
        n=n,
        mean=float(x.mean()),
        median=float(np.median(x)),
        sd=sd,
        sd_ci=Interval(*map(float, ends)) if ends else NO_INTERVAL,
        n_below=n_below,
        share_below=n_below / n,
        share_ci=Interval(float(share.low), float(share.high)),
        p_clusters=two_clusters(x).p_value if n >= FEWEST_FOR_CLUSTERS else np.nan,
    )


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """The best split of values in two, and whether one normal cluster explains it."""

    statistic: float
    """Largest ratio of squares between the two parts to squares within them; inf if none within."""
    n_low: int
    """Values in the lower part."""
    p_value: float
    """Share of normal samples of that size that split as well."""


def two_clusters(values: ArrayLike) -> Clusters:
    """Test of one normal cluster against two, by the best split of the sorted values.

    The likelihood-ratio test for two clusters of equal variance (Engelman and Hartigan 1969); the
    p-value is from `CLUSTER_DRAWS` normal samples under a fixed seed. With few values it sees clusters
    that lie some five of their standard deviations apart; a distribution with one peak but long tails
    is rejected as well.

    Raises
    ------
    DataError
        Fewer than `FEWEST_FOR_CLUSTERS` values.
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) < FEWEST_FOR_CLUSTERS:
        raise DataError(
            f"values of shape {x.shape}: a test of two clusters needs {FEWEST_FOR_CLUSTERS} or more"
        )
    ratios = _split_ratios(x[None])[0]
    best = int(np.argmax(ratios))
    statistic = float(ratios[best])
    reached = int((_normal_splits(len(x)) >= statistic).sum())
    return Clusters(
        statistic=statistic, n_low=best + 1, p_value=(1 + reached) / (1 + CLUSTER_DRAWS)
    )


def _split_ratios(values_BN: Array) -> Array:
    """Squares between over squares within, for each split of the sorted rows, (B, N − 1)."""
    x = np.sort(values_BN, axis=1)
    x = x - x.mean(axis=1, keepdims=True)
    n = x.shape[1]
    low = np.arange(1, n)
    # With mean 0 the sums of the two parts are ±c, so between = c² (1/k + 1/(n − k)).
    between = np.cumsum(x, axis=1)[:, :-1] ** 2 * (1.0 / low + 1.0 / (n - low))
    total = (x**2).sum(axis=1, keepdims=True)
    within = np.maximum(total - between, 0.0)
    exact = np.where(between > 0, np.inf, 0.0)  # nothing within: two values, or one
    return np.divide(between, within, out=exact, where=within > 1e-12 * total)


@cache
def _normal_splits(n: int) -> Array:
    """The statistic of `CLUSTER_DRAWS` normal samples of ``n``."""
    uniform = numpy_rng(0, "two clusters", n).random((CLUSTER_DRAWS, n))
    best: Array = _split_ratios(special.ndtri(uniform)).max(axis=1)
    return best
