"""Profile-likelihood intervals of the peak: an independent check of those that `fit_curve` gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq, minimize_scalar

from overopt.base.errors import ConfigError, FitError
from overopt.fits.forms import Array, TurnOver, get_form, peak
from overopt.fits.linear import linear_operator, t_quantile, whitener
from overopt.fits.peaks import Interval
from overopt.fits.points import check_points


def profile_ci(
    sqrt_kl: ArrayLike,
    gold: ArrayLike,
    sigma: ArrayLike | None,
    form: str,
    quantity: Literal["peak_sqrt_kl", "peak_gold"],
    *,
    covariance: ArrayLike | None = None,
    ci_level: float = 0.95,
) -> Interval:
    """Profile-likelihood interval of the peak location or height, by refitting under constraint.

    An independent check of `fit_curve`'s Fieller and ellipse intervals: for a trial value of the
    quantity the curve is refitted with the quantity held there, and the interval ends where χ² has
    risen by the squared normal quantile. Generalized least squares if ``covariance`` is given.

    Raises
    ------
    FitError
        The maximum is not significant, so the interval is unbounded.
    """
    model = get_form(form)
    turn = model.turn_over
    if turn is None:
        raise ConfigError(f"form {form!r} has no closed-form peak")
    points = check_points(sqrt_kl, gold, sigma, covariance=covariance, min_points=3)
    whiten = whitener(points.covariance)
    curve = _Curve(whiten @ model.basis(points.sqrt_kl, np.nan), whiten @ points.gold, turn)
    theta = linear_operator(curve.basis) @ curve.target
    best = float(np.sum((curve.target - curve.basis @ theta) ** 2))
    rise = t_quantile(ci_level, math.inf) ** 2
    where, height = (float(v) for v in peak(form, theta[0], theta[1]))
    if not (np.isfinite(where) and where > 0):
        raise FitError("the fitted curve has no maximum to profile", best=theta)
    profile, centre = {
        "peak_sqrt_kl": (curve.chi2_at_location, where),
        "peak_gold": (lambda value: curve.chi2_at_height(value, near=where), height),
    }[quantity]

    def excess(log_value: float) -> float:
        return profile(math.exp(log_value)) - best - rise

    ends = [_end(excess, math.log(centre), sign) for sign in (-1.0, 1.0)]
    if None in ends:
        raise FitError(
            f"{quantity} is unbounded at level {ci_level:g}: the turn-over is not "
            "significant; measure further out or with more prompts",
            best=centre,
        )
    return Interval(*(math.exp(end) for end in ends if end is not None))


class _Curve(NamedTuple):
    """A whitened curve and χ² of its fits with a peak that is held somewhere."""

    basis: Array
    """(K, 2)"""
    target: Array
    """(K,)"""
    turn: TurnOver

    def direction(self, d: float) -> Array:
        # With the peak at d, (α, β) = β (h(d), 1): a model with one coefficient.
        return self.basis @ np.array([float(self.turn.ratio(np.array(d))), 1.0])

    def chi2_at_location(self, d: float) -> float:
        x = self.direction(d)
        return float(self.target @ self.target - (x @ self.target) ** 2 / (x @ x))

    def chi2_at_height(self, value: float, *, near: float) -> float:
        """Least over locations, searched around ``near``."""

        def at(log_d: float) -> float:
            d = np.array(math.exp(log_d))
            beta = value / float(d * (self.turn.ratio(d) - self.turn.psi(d)))
            return float(np.sum((self.target - beta * self.direction(float(d))) ** 2))

        centre = math.log(near)
        return float(
            minimize_scalar(
                at, bounds=(centre - 3.0, centre + 3.0), method="bounded", options={"xatol": 1e-10}
            ).fun
        )


def _end(excess: Callable[[float], float], centre: float, sign: float) -> float | None:
    """Where ``excess`` crosses 0 on one side of ``centre``; None where it does not within 3."""
    step = 1e-3
    while excess(centre + sign * step) < 0:
        step *= 1.5
        if step > 3.0:
            return None
    inside = centre + sign * (step / 1.5 if step > 1e-3 else 0.0)
    return float(brentq(excess, inside, centre + sign * step, xtol=1e-13))
