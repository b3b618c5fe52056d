"""One α for the curves of several proxies and a β for each, against separate α.

After Gao et al. 2022: for RL one α serves every size of proxy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.linalg import block_diag

from overopt.base.errors import ConfigError, DataError
from overopt.fits.fit import FitResult, fit_curve
from overopt.fits.forms import Array, Form, get_form
from overopt.fits.linear import linear_operator, t_quantile
from overopt.fits.peaks import Interval, PeakEstimate, estimate_peak
from overopt.fits.points import Points, check_points


@dataclass(frozen=True, kw_only=True, eq=False)
class CurvePoints:
    """The points of one curve, as arguments of `fit_curve`."""

    sqrt_kl: ArrayLike
    gold: ArrayLike
    sigma: ArrayLike | None = None
    covariance: ArrayLike | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedAlphaFit:
    """One α for all curves and a β for each, against separate α."""

    form: str
    alpha: float
    alpha_stderr: float
    alpha_ci: Interval
    beta: Mapping[str, float]
    beta_stderr: Mapping[str, float]
    beta_ci: Mapping[str, Interval]
    covar: Array
    """(1 + curves, 1 + curves): α, then the β in order."""
    peak: Mapping[str, PeakEstimate]
    ci_level: float
    n_points: int
    chi2: float
    aic: float
    aic_separate: float
    delta_aic: float
    """Shared minus separate: negative where sharing α is the better description."""
    p_value: float
    """Wald test of equal α: small where they differ."""
    separate: Mapping[str, FitResult]

    def predict(self, name: str, sqrt_kl: ArrayLike) -> Array:
        """Fitted gold of curve ``name`` at ``sqrt_kl``."""
        params = {"alpha": self.alpha, "beta": self.beta[name]}
        return get_form(self.form).evaluate(sqrt_kl, params)


def fit_shared_alpha(
    curves: Mapping[str, CurvePoints],
    form: str = "rl",
    *,
    covariance: ArrayLike | None = None,
    cut_off: float | None = None,
    ci_level: float = 0.95,
) -> SharedAlphaFit:
    """Fit curves of several proxies with one α in common and a β each.

    Weighted least squares over all points, standard errors by the sandwich, as in `fit_curve`.

    Parameters
    ----------
    curves
        By label (size), at least two.
    form
        A form with parameters α and β.
    covariance
        Covariance of all points of all curves stacked in order, for curves that share prompts or
        pool. Without it curves count as independent.
    cut_off, ci_level
        As in `fit_curve`.
    """
    model = get_form(form)
    if model.params != ("alpha", "beta"):
        raise ConfigError(f"form {form!r} has parameters {model.params}; it needs alpha and beta")
    if len(curves) < 2:
        raise DataError(f"{len(curves)} curves; sharing alpha needs at least 2")
    separate = {
        name: fit_curve(
            c.sqrt_kl,
            c.gold,
            c.sigma,
            form,
            covariance=c.covariance,
            cut_off=cut_off,
            ci_level=ci_level,
        )
        for name, c in curves.items()
    }
    points = [_points(curve, cut_off) for curve in curves.values()]
    lengths = [len(np.asarray(c.gold)) for c in curves.values()]
    sigma = np.concatenate([p.sigma for p in points])
    gold = np.concatenate([p.gold for p in points]) / sigma
    noise = _noise(points, lengths, covariance) / np.outer(sigma, sigma)
    bases = [model.basis(p.sqrt_kl, np.nan) for p in points]
    shared = _solve(_one_alpha(bases) / sigma[:, None], gold, noise)
    apart = _solve(block_diag(*bases) / sigma[:, None], gold, noise)

    theta, covar = shared.theta, shared.covar
    stderr = np.sqrt(np.diag(covar))
    q = t_quantile(ci_level, math.inf)
    ci = [Interval(float(t - q * s), float(t + q * s)) for t, s in zip(theta, stderr, strict=True)]
    return SharedAlphaFit(
        form=form,
        alpha=float(theta[0]),
        alpha_stderr=float(stderr[0]),
        alpha_ci=ci[0],
        beta=dict(zip(curves, map(float, theta[1:]), strict=True)),
        beta_stderr=dict(zip(curves, map(float, stderr[1:]), strict=True)),
        beta_ci=dict(zip(curves, ci[1:], strict=True)),
        covar=covar,
        peak=dict(zip(curves, _peaks(model, shared, points, q), strict=True)),
        ci_level=ci_level,
        n_points=len(gold),
        chi2=shared.chi2,
        aic=shared.aic,
        aic_separate=apart.aic,
        delta_aic=shared.aic - apart.aic,
        p_value=_equal_alpha_p(apart, len(points)),
        separate=separate,
    )


def _points(curve: CurvePoints, cut_off: float | None) -> Points:
    return check_points(
        curve.sqrt_kl,
        curve.gold,
        curve.sigma,
        covariance=curve.covariance,
        cut_off=cut_off,
        min_points=2,
    )


class _Solution(NamedTuple):
    """A weighted least-squares fit of all curves together."""

    theta: Array
    covar: Array
    chi2: float
    aic: float


def _solve(design: Array, gold: Array, noise: Array) -> _Solution:
    """Least squares on weighted rows, standard errors by the sandwich."""
    operator = linear_operator(design)
    theta = operator @ gold
    chi2 = float(np.sum((gold - design @ theta) ** 2))
    penalty = 2.0 * float(np.trace(design @ operator @ noise))
    return _Solution(theta, operator @ noise @ operator.T, chi2, chi2 + penalty)


def _noise(points: Sequence[Points], lengths: Sequence[int], covariance: ArrayLike | None) -> Array:
    """Covariance of the used points of all curves, cut from that of all points where given."""
    if covariance is None:
        return np.asarray(block_diag(*(p.covariance for p in points)))
    full = np.asarray(covariance, dtype=float)
    total = sum(lengths)
    if full.shape != (total, total):
        raise DataError(
            f"covariance has shape {full.shape}; the curves have {total} points together"
        )
    starts = np.cumsum([0, *lengths[:-1]])
    rows = np.concatenate([p.rows + start for p, start in zip(points, starts, strict=True)])
    return full[np.ix_(rows, rows)]


def _one_alpha(bases: Sequence[Array]) -> Array:
    """Design with a common column for α and one for each curve's β, (points, 1 + curves)."""
    alpha = np.concatenate([b[:, :1] for b in bases])
    return np.concatenate([alpha, block_diag(*(b[:, 1:] for b in bases))], axis=1)


def _equal_alpha_p(apart: _Solution, n_curves: int) -> float:
    """Wald test of the hypothesis that the separate α, every second parameter, are equal."""
    contrast = np.zeros((n_curves - 1, 2 * n_curves))
    contrast[:, 0] = -1.0
    contrast[np.arange(n_curves - 1), 2 * np.arange(1, n_curves)] = 1.0
    gap = contrast @ apart.theta
    wald = float(gap @ np.linalg.solve(contrast @ apart.covar @ contrast.T, gap))
    return float(stats.chi2.sf(wald, n_curves - 1))


def _peaks(
    model: Form, shared: _Solution, points: Sequence[Points], quantile: float
) -> list[PeakEstimate]:
    return [
        estimate_peak(
            model,
            shared.theta[[0, i]],
            shared.covar[np.ix_([0, i], [0, i])],
            quantile=lambda _: quantile,
            d_min=float(p.sqrt_kl[0]),
            d_max=float(p.sqrt_kl[-1]),
        )
        for i, p in enumerate(points, start=1)
    ]
