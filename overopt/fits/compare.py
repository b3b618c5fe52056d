"""Which form describes a curve: information criteria, and extrapolation in KL.

Compares the forms of `forms` side by side, with nonparametric baselines a form has to beat. The
sharper test is extrapolation, after Gao et al. 2022 (figure 26): fit the points up to a cut-off and
score the points beyond it. A form chosen by its fit alone is often the more flexible one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import UnivariateSpline
from scipy.optimize import isotonic_regression

from overopt.base.errors import ConfigError, DataError
from overopt.fits.fit import Estimator, FitResult, fit_curve
from overopt.fits.forms import BASELINES, GOLD_FORMS, Array, get_form
from overopt.fits.linear import jacobian, linear_operator
from overopt.fits.points import Points, check_points

SPLINE_POINTS = 5
"""Fewest points for a cubic smoothing spline."""


@dataclass(frozen=True, kw_only=True)
class FormScore:
    """One form's fit to a curve, comparable with other rows of the same table only."""

    form: str
    n_points: int
    n_params: int
    chi2: float
    p_value: float
    aic: float
    aicc: float
    delta_aicc: float
    """Above the best form of the table."""
    akaike_weight: float
    """exp(−delta/2), normalized over the table; 0 for a form without AICc."""
    fit: FitResult


@dataclass(frozen=True, kw_only=True)
class ExtrapolationScore:
    """One form fitted up to a cut-off and scored on the points beyond."""

    form: str
    cut_off: float
    """√nats"""
    n_fit: int
    n_held_out: int
    rmse: float
    """Root mean squared error of the points beyond the cut-off, in the unit of the score."""
    rmse_sigma: float
    """The same with each error in units of its point's sigma."""
    bias: float
    """Mean of prediction minus score: negative where the form underestimates."""
    inside: float
    """Share of held-out points in their prediction interval, which knows the covariance of held-out
    and fitted points; nan for baselines."""
    fit: FitResult | None
    """None for baselines."""


def compare_forms(
    sqrt_kl: ArrayLike,
    gold: ArrayLike,
    sigma: ArrayLike | None,
    forms: Sequence[str] = GOLD_FORMS,
    *,
    covariance: ArrayLike | None = None,
    covariance_dof: float | None = None,
    estimator: Estimator = "wls",
    cut_off: float | None = None,
) -> list[FormScore]:
    """Fit each form and rank them by AICc, best first; arguments as in `fit_curve`.

    A form with too many parameters for AICc (K − p − 1 < 1) comes last, with nan.
    """
    fits = [
        fit_curve(
            sqrt_kl,
            gold,
            sigma,
            form,
            covariance=covariance,
            covariance_dof=covariance_dof,
            estimator=estimator,
            cut_off=cut_off,
        )
        for form in forms
    ]
    aicc = np.array([fit.aicc for fit in fits])
    known = np.isfinite(aicc)
    best = float(aicc[known].min()) if known.any() else np.nan
    weight = np.where(known, np.exp(-0.5 * (np.where(known, aicc, best) - best)), 0.0)
    total = float(weight.sum()) if known.any() else np.nan
    rows = [
        FormScore(
            form=fit.form,
            n_points=fit.n_points,
            n_params=len(fit.params),
            chi2=fit.chi2,
            p_value=fit.p_value,
            aic=fit.aic,
            aicc=fit.aicc,
            delta_aicc=fit.aicc - best,
            akaike_weight=float(w) / total,
            fit=fit,
        )
        for fit, w in zip(fits, weight, strict=True)
    ]
    return sorted(rows, key=lambda row: (not np.isfinite(row.aicc), row.aicc))


def extrapolate(
    sqrt_kl: ArrayLike,
    gold: ArrayLike,
    sigma: ArrayLike | None,
    forms: Sequence[str] = (*GOLD_FORMS, *BASELINES),
    *,
    cut_off: float,
    covariance: ArrayLike | None = None,
    covariance_dof: float | None = None,
    ci_level: float = 0.95,
) -> list[ExtrapolationScore]:
    """Fit each form to the points with d <= ``cut_off``, score those beyond, best rmse first.

    Weighted least squares; arguments as in `fit_curve`; ``forms`` may name `BASELINES` too.
    Nothing beyond the cut-off enters a fit, its weights included.

    Raises
    ------
    DataError
        No point beyond the cut-off, or too few before it.
    """
    points = check_points(sqrt_kl, gold, sigma, covariance=covariance)
    held = points.sqrt_kl > cut_off
    if not held.any():
        raise DataError(
            f"cut_off={cut_off:g} leaves no point to predict: the last sqrt_kl is "
            f"{points.sqrt_kl[-1]:g}; choose a smaller cut-off"
        )
    seen = ~held
    rows = []
    for form in forms:
        fit = None
        inside = np.nan
        if form in BASELINES:
            curve = fit_baseline(form, points.sqrt_kl[seen], points.gold[seen], points.sigma[seen])
            predicted = curve(points.sqrt_kl[held])
        else:
            fit = fit_curve(
                points.sqrt_kl,
                points.gold,
                points.sigma,
                form,
                covariance=points.covariance,
                covariance_dof=covariance_dof,
                cut_off=cut_off,
                ci_level=ci_level,
            )
            predicted = fit.predict(points.sqrt_kl[held])
            if fit.has_uncertainty:
                half = _quantile(fit) * _prediction_stderr(fit, points, held)
                inside = float(np.mean(np.abs(points.gold[held] - predicted) <= half))
        error = predicted - points.gold[held]
        rows.append(
            ExtrapolationScore(
                form=form,
                cut_off=cut_off,
                n_fit=int(seen.sum()),
                n_held_out=int(held.sum()),
                rmse=float(np.sqrt(np.mean(error**2))),
                rmse_sigma=float(np.sqrt(np.mean((error / points.sigma[held]) ** 2))),
                bias=float(np.mean(error)),
                inside=inside,
                fit=fit,
            )
        )
    return sorted(rows, key=lambda row: row.rmse)


def fit_baseline(
    name: str, sqrt_kl: ArrayLike, gold: ArrayLike, sigma: ArrayLike
) -> Callable[[ArrayLike], Array]:
    """A nonparametric curve through the points, as a function of d; 0 at d = 0.

    ``isotonic``: the weighted monotone increasing step fit, joined by lines, constant beyond the
    last point. ``spline``: a cubic smoothing spline of gold/d with total squared error of one sigma
    per point (Reinsch), continued beyond the last point by its tangent.
    """
    d, y, s, _, _ = check_points(sqrt_kl, gold, sigma)
    if name == "isotonic":
        level = isotonic_regression(y, weights=1.0 / s**2).x
        knots, values = np.append(0.0, d), np.append(0.0, level)
        return lambda x: np.interp(np.asarray(x, dtype=float), knots, values)
    if name != "spline":
        raise ConfigError(f"unknown baseline {name!r}; known: {', '.join(BASELINES)}")
    if len(d) < SPLINE_POINTS:
        raise DataError(f"{len(d)} points for a spline, which needs {SPLINE_POINTS}")
    ratio = UnivariateSpline(d, y / d, w=d / s, s=len(d))
    last = float(d[-1])
    end = last * float(ratio(last))
    slope = float(ratio(last)) + last * float(ratio.derivative()(last))

    def curve(x: ArrayLike) -> Array:
        at = np.asarray(x, dtype=float)
        within = np.minimum(at, last)
        return np.where(at <= last, within * ratio(within), end + slope * (at - last))

    return curve


def _prediction_stderr(fit: FitResult, points: Points, held: NDArray[np.bool_]) -> Array:
    """Standard deviation of (held-out point − prediction), which share their prompts' errors."""
    seen = ~held
    form = get_form(fit.form)
    sigma = points.sigma[seen]
    operator = (
        linear_operator(jacobian(form, points.sqrt_kl[seen], fit.params) / sigma[:, None]) / sigma
    )
    weights = np.zeros((int(held.sum()), len(held)))
    weights[:, held] = np.eye(int(held.sum()))
    weights[:, seen] = -jacobian(form, points.sqrt_kl[held], fit.params) @ operator
    return np.sqrt(np.einsum("hk,kl,hl->h", weights, points.covariance, weights))


def _quantile(fit: FitResult) -> float:
    """Quantile behind the fit's intervals."""
    name = next(iter(fit.params))
    return (fit.ci[name].high - fit.params[name]) / fit.stderr[name]
