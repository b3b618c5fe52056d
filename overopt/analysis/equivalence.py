"""Are two mitigations alike within a margin? Two one-sided tests on paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from overopt.analysis.leaderboard import check_paired
from overopt.analysis.reach import gold_at
from overopt.base.errors import DataError
from overopt.fits.forms import Array
from overopt.fits.peaks import Interval
from overopt.fits.replicates import paired_difference
from overopt.records.curves import Curve


@dataclass(frozen=True, kw_only=True, eq=False)
class Equivalence:
    """Difference of two gold-against-√KL frontiers, and how small it is shown to be.

    Attributes
    ----------
    sqrt_kl, difference, ci_low, ci_high : (G,)
        a − b at each √KL, with 90 % intervals: a two-sided test of equivalence at 5 % holds for a
        bound exactly if the 90 % interval lies within it.
    bound : float
        Smallest bound within which the frontiers are equivalent at *every* √KL of the grid, at 5 %:
        the largest |limit|. Needs no correction for the number of points, since all must pass
        (intersection-union test).
    mean_difference, mean_ci, mean_bound : float, Interval, float
        The same for the mean over the grid.
    n_seeds, n_prompts : int
        Behind every point. One seed: the statement is about that seed.
    """

    sqrt_kl: Array
    difference: Array
    ci_low: Array
    ci_high: Array
    bound: float
    mean_difference: float
    mean_ci: Interval
    mean_bound: float
    n_seeds: int
    n_prompts: int


def equivalence(
    curves_a: Sequence[Curve],
    curves_b: Sequence[Curve],
    grid: ArrayLike | None = None,
    *,
    alpha: float = 0.05,
) -> Equivalence:
    """Test that two settings have one gold-against-√KL frontier, over the range both reach.

    Made for the finding of Gao et al. 2022 (their figure 9) that a KL penalty in RL moves a run
    along the frontier without changing the frontier: a claim of no difference, which a test that
    fails to reject cannot make and a bound can.

    Parameters
    ----------
    curves_a, curves_b
        One curve a seed, the same seeds in the same order (paired by proxy), common prompts.
    grid
        (G,) values of √KL; default: 20, evenly spaced up to the smallest reach of any curve.
    alpha
        Level of the two one-sided tests (Schuirmann 1987).

    Raises
    ------
    DataError
        Seeds or prompts that differ, or a grid that leaves the common range.
    """
    check_paired({"a": curves_a, "b": curves_b})
    common = min(float(curve["sqrt_kl"].max()) for curve in [*curves_a, *curves_b])
    at = np.linspace(0, common, 21)[1:] if grid is None else np.asarray(grid, dtype=float)
    if at.max() > common or at.min() <= 0:
        raise DataError(
            f"grid reaches from {at.min():g} to {at.max():g} √nats; all curves reach {common:g}:"
            " keep the grid above 0 and within that"
        )
    table = np.stack(
        [gold_at(a, at) - gold_at(b, at) for a, b in zip(curves_a, curves_b, strict=True)]
    )
    points = [
        paired_difference(table[:, g], np.zeros_like(table[:, g]), ci_level=1 - 2 * alpha)
        for g in range(len(at))
    ]
    mean = paired_difference(table.mean(axis=1), np.zeros_like(table[:, 0]), ci_level=1 - 2 * alpha)
    low, high = (np.array([p.ci[side] for p in points]) for side in (0, 1))
    return Equivalence(
        sqrt_kl=at,
        difference=np.array([p.estimate for p in points]),
        ci_low=low,
        ci_high=high,
        bound=float(np.maximum(np.abs(low), np.abs(high)).max()),
        mean_difference=mean.estimate,
        mean_ci=mean.ci,
        mean_bound=float(max(abs(mean.ci.low), abs(mean.ci.high))),
        n_seeds=len(curves_a),
        n_prompts=table.shape[2],
    )
