"""Interval of the turn-over of a fitted curve d(α − β ψ(d)): its location and its height.

Used by `fit`, `replicates` and `scaling`, which bring an estimate of (α, β), its covariance and a
quantile. The location is a monotone function of the ratio α/β, whose estimate has no variance and
is far from normal where β is uncertain: Fieller's set is used, never the delta method. The height
is the range of the maximum over the confidence ellipse, which equals its profile-likelihood
interval. Where the data do not show a turn-over, the estimate says so instead of giving a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from overopt.fits.forms import Array, Form, peak

PeakStatus = Literal[
    "in_range",  # the maximum lies among the measured points and beta is significantly positive
    "before_range",  # it lies before the first measured point
    "beyond_range",  # it lies after the last measured point
    "not_significant",  # beta is not significantly positive: there may be no maximum
    "no_turn_over",  # the curve rises for ever (beta < 0) or falls from the start
    "no_uncertainty",  # there is no covariance to judge by
    "undefined",  # the form has no closed-form maximum
]

ELLIPSE_POINTS = 2048
"""Points on the confidence ellipse; the range of a smooth function is exact to about 1e-6 of it."""

LOWER_BOUND_POINTS = 256
"""Grid over the measured range on which the lower bound of an unseen maximum is sought."""


class Interval(NamedTuple):
    """An interval; ``-inf``/``inf`` is an unbounded side, ``nan`` a side that cannot be given."""

    low: float
    high: float


NO_INTERVAL = Interval(np.nan, np.nan)


@dataclass(frozen=True, kw_only=True)
class PeakEstimate:
    """Location (√nats) and height of a maximum with intervals, or the reason there is none.

    ``sqrt_kl`` and ``gold`` are nan unless ``status`` is ``"in_range"``. An interval with an
    infinite upper side is then still a statement: "not before ``sqrt_kl_ci.low``", "at least
    ``gold_ci.low``".
    """

    status: PeakStatus
    sqrt_kl: float = np.nan
    sqrt_kl_ci: Interval = NO_INTERVAL
    gold: float = np.nan
    gold_ci: Interval = NO_INTERVAL

    @property
    def in_range(self) -> bool:
        """Whether the maximum was seen: significant, and among the measured points."""
        return self.status == "in_range"


def fieller(
    numerator: float, denominator: float, covar: ArrayLike, quantile: float
) -> tuple[Interval, bool]:
    """Fieller's confidence set of a ratio of two correlated normal estimates.

    Parameters
    ----------
    numerator, denominator
        The two estimates a and b; the ratio is ρ = a/b.
    covar
        Their covariance, shape (2, 2).
    quantile
        Two-sided normal or t quantile.

    Returns
    -------
    The interval, and whether it is bounded. It is unbounded where ``denominator`` does not differ
    significantly from 0; then ``high`` is inf, and ``low`` the end of the branch that reaches +inf
    (-inf where that branch is the whole line).

    Notes
    -----
    The set {ρ : (a − ρb)² <= q² (V_aa − 2ρV_ab + ρ²V_bb)}; Fieller (1954).
    """
    v = np.asarray(covar, dtype=float)
    q2 = quantile**2
    square = denominator**2 - q2 * v[1, 1]
    half = numerator * denominator - q2 * v[0, 1]
    constant = numerator**2 - q2 * v[0, 0]
    # The discriminant is >= 0 in exact arithmetic wherever the set is bounded.
    root = math.sqrt(max(half**2 - square * constant, 0.0))
    if square > 0:
        return Interval((half - root) / square, (half + root) / square), True
    if square < 0 and constant > 0:
        return Interval((half - root) / square, np.inf), False
    return Interval(-np.inf, np.inf), False


def height_interval(form: Form, params: ArrayLike, covar: ArrayLike, quantile: float) -> Interval:
    """Range of the maximum over the ellipse (θ−θ̂)ᵀ V⁻¹ (θ−θ̂) <= quantile².

    Notes
    -----
    The maximum of a curve is a convex function of (α, β) without stationary points, so its
    extremes lie on the boundary, which is walked at `ELLIPSE_POINTS` angles.
    """
    angle = np.linspace(0.0, 2.0 * np.pi, ELLIPSE_POINTS, endpoint=False)
    values, vectors = np.linalg.eigh(np.asarray(covar, dtype=float))
    half_axes = vectors * np.sqrt(np.maximum(values, 0.0))
    offsets = np.stack([np.cos(angle), np.sin(angle)], axis=-1) @ half_axes.T
    theta = np.asarray(params, dtype=float) + quantile * offsets
    heights = peak(form.name, theta[:, 0], theta[:, 1]).gold
    return Interval(float(heights.min()), float(heights.max()))


def estimate_peak(
    form: Form,
    params: Array,
    covar: Array,
    *,
    quantile: Callable[[Array], float],
    d_min: float = 0.0,
    d_max: float = np.inf,
) -> PeakEstimate:
    """Peak of a fitted curve with intervals, or the reason why there is none to give.

    Parameters
    ----------
    form
        A form; those without a closed-form peak give status ``"undefined"``.
    params, covar
        Estimate (2,) of (α, β) and its covariance (2, 2).
    quantile
        Gives the two-sided quantile for the linear contrast cᵀθ, from c of shape (2,); it may
        depend on c where the degrees of freedom do.
    d_min, d_max
        The measured range, √nats; a peak outside it is reported by status, not by number. The
        default reports extrapolated peaks as well.
    """
    turn = form.turn_over
    if turn is None:
        return PeakEstimate(status="undefined")
    if not (np.isfinite(params).all() and np.isfinite(covar).all()):
        return PeakEstimate(status="no_uncertainty")
    alpha, beta = map(float, params)
    where, height = (float(v) for v in peak(form.name, alpha, beta))
    q_beta = quantile(np.array([0.0, 1.0]))
    if beta + q_beta * math.sqrt(covar[1, 1]) < 0 or where == 0.0:
        return PeakEstimate(status="no_turn_over")

    q_where = quantile(np.array([1.0, -alpha / beta])) if beta > 0 else q_beta
    ratio_ci, bounded = fieller(alpha, beta, covar, q_where)
    with np.errstate(over="ignore", divide="ignore"):
        low, high = (float(v) for v in turn.location(np.array(ratio_ci)))
    significant = bounded and beta - q_beta * math.sqrt(covar[1, 1]) > 0
    if significant and where < d_min:
        return PeakEstimate(status="before_range", sqrt_kl_ci=Interval(0.0, max(high, d_min)))
    if not significant or where > d_max:
        return PeakEstimate(
            status="beyond_range" if significant else "not_significant",
            sqrt_kl_ci=Interval(min(low, d_max), np.inf),
            gold_ci=Interval(_least_maximum(form, params, covar, quantile, d_max), np.inf),
        )
    # Gradient of the height at the peak: ∂/∂α = d*, ∂/∂β = −d*ψ(d*) (envelope theorem).
    q_height = quantile(np.array([where, -where * float(turn.psi(np.array(where)))]))
    return PeakEstimate(
        status="in_range",
        sqrt_kl=where,
        sqrt_kl_ci=Interval(low, high),
        gold=height,
        gold_ci=height_interval(form, params, covar, q_height),
    )


def _least_maximum(
    form: Form, params: Array, covar: Array, quantile: Callable[[Array], float], d_max: float
) -> float:
    """Lower bound of a maximum that was not seen.

    A maximum is at least as high as the curve at any d, hence as its lower band at any fixed d: the d
    of the highest estimate up to ``d_max``. Without a measured range it is the smallest maximum over
    the confidence ellipse, 0 where that holds curves that fall from the start.
    """
    if not np.isfinite(d_max):
        return height_interval(form, params, covar, quantile(np.array([0.0, 1.0]))).low
    basis = form.basis(np.linspace(0.0, d_max, LOWER_BOUND_POINTS), np.nan)
    stderr = np.sqrt(np.einsum("ki,ij,kj->k", basis, covar, basis))
    values = basis @ params
    best = int(np.argmax(values))
    return float(values[best] - quantile(basis[best]) * stderr[best])
