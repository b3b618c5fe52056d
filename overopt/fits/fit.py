"""Fit one gold-vs-√KL curve: parameters, intervals, the peak, and what not to believe.

Takes points (d, gold, sigma) as arrays and returns a `FitResult`. `replicates` and `bootstrap`
reach the same linear algebra from per-prompt values, and are to be preferred where those exist.

Differs from common practice in three ways. Forms are solved linearly, without starting values.
``sigma`` is always the standard error of a point; weights are made here and nowhere else. With a
covariance of the points (the points of a best-of-n curve share one pool of responses), the default
still estimates by weighted least squares and uses the covariance only for the standard errors:
generalized least squares leans on the smallest eigenvalues of the covariance, which are the worst
known of an estimated one, and where a real curve departs from the form by a hair they decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special
from scipy.optimize import minimize_scalar

from overopt.base.errors import ConfigError, FitError
from overopt.base.files import plain
from overopt.fits.forms import Array, Form, get_form
from overopt.fits.linear import jacobian, linear_operator, quadratic_form_p, t_quantile, whitener
from overopt.fits.peaks import Interval, PeakEstimate, estimate_peak
from overopt.fits.points import Points, check_points
from overopt.fits.pvalues import p_text

Estimator = Literal["wls", "gls"]

POOR_FIT_P = 1e-3
"""Goodness-of-fit p-value below which the message warns."""

SHAPE_GRID = 33
"""Starting grid for a shape parameter, log-spaced over its range."""


class Band(NamedTuple):
    """A fitted curve and its pointwise interval, each of the shape of ``sqrt_kl``."""

    gold: Array
    low: Array
    high: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class FitResult:
    """A fitted form: estimates, their uncertainty, and flags that say when to trust neither."""

    form: str
    estimator: str
    """``wls`` or ``gls`` from points, ``replicates`` from per-prompt values."""
    params: Mapping[str, float]
    stderr: Mapping[str, float]
    covar: Array
    """Covariance of the parameters, (p, p), in the order of ``params``."""
    ci: Mapping[str, Interval]
    ci_level: float
    quantile_dof: Mapping[str, float]
    """Degrees of freedom of the t quantile behind each interval; inf means normal."""
    n_points: int
    """Points used: above d = 0 and up to the cut-off."""
    dof: int
    """``n_points`` minus the number of parameters."""
    d_min: float
    d_max: float
    """Range of the points used, √nats."""
    cut_off: float | None
    chi2: float
    """Σ (residual/sigma)², or rᵀC⁻¹r for ``gls``."""
    p_value: float
    """Probability of a worse fit if the form were true; nan where it cannot be computed."""
    aic: float
    aicc: float
    peak: PeakEstimate
    start_values: Mapping[str, float]
    """Of the shape parameter; empty for forms that are solved linearly."""
    converged: bool
    has_uncertainty: bool
    at_bound: bool
    """The shape parameter stopped at the end of its range: its stderr means little."""
    message: str
    by_prompt: Array | None = None
    """(P, p) parameters of each prompt's own curve, whose mean is ``params``; None without values by
    prompt. Fits to the same prompts, column by column, share their errors through it."""

    @property
    def peak_sqrt_kl(self) -> float:
        """Location of the maximum, √nats; nan unless it was seen (`peak_in_range`)."""
        return self.peak.sqrt_kl

    @property
    def peak_sqrt_kl_ci(self) -> Interval:
        """Interval of the location; an infinite side means unbounded."""
        return self.peak.sqrt_kl_ci

    @property
    def peak_gold(self) -> float:
        """Height of the maximum; nan unless it was seen (`peak_in_range`)."""
        return self.peak.gold

    @property
    def peak_gold_ci(self) -> Interval:
        """Interval of the height; an infinite side means unbounded."""
        return self.peak.gold_ci

    @property
    def peak_in_range(self) -> bool:
        """Whether the maximum is significant and lies among the points used."""
        return self.peak.in_range

    def predict(self, sqrt_kl: ArrayLike) -> Array:
        """Fitted gold at ``sqrt_kl`` (√nats), same shape."""
        return get_form(self.form).evaluate(sqrt_kl, self.params)

    def band(self, sqrt_kl: ArrayLike) -> Band:
        """Fitted gold with the pointwise interval of the curve (not of a new observation)."""
        d = np.asarray(sqrt_kl, dtype=float)
        jac = jacobian(get_form(self.form), d, self.params)
        stderr = np.sqrt(np.einsum("...i,ij,...j->...", jac, self.covar, jac))
        half = t_quantile(self.ci_level, min(self.quantile_dof.values())) * stderr
        gold = self.predict(d)
        return Band(gold, gold - half, gold + half)

    def extrapolated_peak(self) -> PeakEstimate:
        """The maximum wherever the fitted form puts it, also outside the measured range."""
        return estimate_peak(
            get_form(self.form),
            np.array(list(self.params.values())),
            self.covar,
            quantile=lambda _: t_quantile(self.ci_level, min(self.quantile_dof.values())),
        )

    def to_dict(self) -> Any:
        """Plain lists, numbers and strings for JSON, without ``by_prompt``; see `jsonable`."""
        return jsonable({k: v for k, v in vars(self).items() if k != "by_prompt"})


def fit_curve(
    sqrt_kl: ArrayLike,
    gold: ArrayLike,
    sigma: ArrayLike | None,
    form: str = "bon",
    *,
    covariance: ArrayLike | None = None,
    covariance_dof: float | None = None,
    estimator: Estimator = "wls",
    cut_off: float | None = None,
    ci_level: float = 0.95,
) -> FitResult:
    """Fit a functional form to one curve of gold (or proxy) score against d = √KL.

    Parameters
    ----------
    sqrt_kl
        d of each point, (K,), √nats, strictly increasing. A point at d = 0 must have gold 0 (within
        its sigma) and is not used: every form is 0 there.
    gold
        Score of each point, (K,), recentred to 0 at d = 0.
    sigma
        **Standard error** of each point, (K,), never a weight. May be None where ``covariance`` is
        given.
    form
        Name of a form in `overopt.fits.FORMS`: ``bon``, ``rl``, ...
    covariance
        Covariance of the points, (K, K). Without it the points count as independent, and for
        points that share a pool or prompts the standard errors come out wrong, mostly too small.
    covariance_dof
        Degrees of freedom behind ``sigma`` or ``covariance``: prompts − 1. None means known.
    estimator
        ``wls``: weights 1/sigma², standard errors by the sandwich with ``covariance``, quantiles of
        t with ``covariance_dof``. ``gls``: generalized least squares, with Rao's exact small-sample
        correction where ``covariance_dof`` is given.
    cut_off
        Use only points with d <= ``cut_off``.
    ci_level
        Level of every interval.

    Raises
    ------
    DataError
        Points that cannot be used, or fewer than the form has parameters; names row and column.
    FitError
        A covariance that is not positive definite, or too many points for its degrees of freedom,
        with ``estimator="gls"``.
    ConfigError
        Unknown form (names the nearest), estimator or level.

    Notes
    -----
    WLS: θ̂ = A y with A = (XᵀWX)⁻¹XᵀW, covariance A C Aᵀ. AIC is χ² + 2 tr(W X A C), the
    covariance penalty of Efron (2004), which is χ² + 2p for independent points. The p-value of χ²
    matches its mean and variance under C (Satterthwaite).

    GLS with an estimated covariance on ν degrees of freedom and q = K − p residual contrasts: the
    covariance (XᵀC⁻¹X)⁻¹ is multiplied by ν/(ν−q) · (1 + χ²/ν), and t has ν − q degrees of freedom.
    This is the exact conditional result for normal prompts (Rao 1967), because estimating C⁻¹
    amounts to regressing on q covariates. Without it the intervals are far too short.
    """
    model = get_form(form)
    if estimator not in ("wls", "gls"):
        raise ConfigError(f"estimator is {estimator!r}; use 'wls' or 'gls'")
    if not 0 < ci_level < 1:
        raise ConfigError(f"ci_level is {ci_level!r}; use a number between 0 and 1")
    points = check_points(
        sqrt_kl, gold, sigma, covariance=covariance, cut_off=cut_off, min_points=len(model.params)
    )
    fitted = _least_squares(model, points, estimator)
    judged = _judge(fitted, estimator, math.inf if covariance_dof is None else covariance_dof)
    n, p = fitted.jac.shape
    trusted = n > p and judged.nu >= 1 and bool(np.isfinite(judged.covar).all())
    notes = _notes(model, fitted, judged)
    return summarize(
        model,
        fitted.params,
        judged.covar if trusted else np.full((p, p), np.nan),
        dof_of=lambda _: judged.nu,
        estimator=estimator,
        ci_level=ci_level,
        n_points=n,
        d_range=(float(points.sqrt_kl[0]), float(points.sqrt_kl[-1])),
        cut_off=cut_off,
        chi2=fitted.chi2,
        p_value=judged.p_value,
        penalty=judged.penalty,
        start_values=fitted.start,
        at_bound=fitted.at_bound,
        notes=notes,
    )


class _Fitted(NamedTuple):
    """Estimates from whitened points, and what their uncertainty is made of."""

    params: dict[str, float]
    start: dict[str, float]
    at_bound: bool
    jac: Array
    """(K, p) derivative of the whitened curve by the parameters."""
    noise: Array
    """(K, K) covariance of the whitened points."""
    chi2: float


class _Judged(NamedTuple):
    """Uncertainty of a fit and how well it describes its points."""

    covar: Array
    """(p, p)"""
    penalty: float
    """What AIC adds to χ²."""
    p_value: float
    nu: float
    """Degrees of freedom of the t quantile; inf means normal."""
    covariance_dof: float
    """Those that the caller gave; inf where the covariance is known."""


def _least_squares(model: Form, points: Points, estimator: Estimator) -> _Fitted:
    # Whitened rows turn every estimator into ordinary least squares.
    if estimator == "wls":
        whiten: Array = np.diag(1.0 / points.sigma)
    else:
        whiten = whitener(points.covariance)
    shape, start, at_bound = _fit_shape(model, points, whiten)
    basis = model.basis(points.sqrt_kl, shape)
    coef = linear_operator(whiten @ basis) @ (whiten @ points.gold)
    values = coef if model.shape is None else np.append(coef, shape)
    params = dict(zip(model.params, map(float, values), strict=True))
    residual = whiten @ (points.gold - basis @ coef)
    return _Fitted(
        params,
        start,
        at_bound,
        jac=whiten @ jacobian(model, points.sqrt_kl, params),
        noise=whiten @ points.covariance @ whiten.T,
        chi2=float(residual @ residual),
    )


def _judge(fitted: _Fitted, estimator: Estimator, covariance_dof: float) -> _Judged:
    """Covariance of the parameters, AIC penalty and p-value; see the notes of `fit_curve`."""
    jac, noise, chi2 = fitted.jac, fitted.noise, fitted.chi2
    nu = float(covariance_dof)
    n, p = jac.shape
    dof = n - p
    operator = linear_operator(jac)
    covar = operator @ noise @ operator.T
    penalty = 2.0 * float(np.trace(jac @ operator @ noise))
    p_value = quadratic_form_p(chi2, noise, np.eye(n) - jac @ operator) if dof > 0 else np.nan
    if estimator == "gls" and np.isfinite(nu):
        if nu <= dof:
            raise FitError(
                f"estimator='gls' with covariance_dof={nu:g} needs more degrees of freedom than "
                f"the {dof} residual contrasts of {n} points; use estimator='wls', fewer points "
                "or more prompts",
                best=fitted.params,
            )
        if dof > 0:
            covar = covar * (nu / (nu - dof) * (1.0 + chi2 / nu))
            p_value = float(special.fdtrc(dof, nu - dof + 1, chi2 * (nu - dof + 1) / (nu * dof)))
        nu = nu - dof
    return _Judged(covar, penalty, p_value, nu, covariance_dof)


def _notes(model: Form, fitted: _Fitted, judged: _Judged) -> list[str]:
    """What a reader of the numbers has to be told."""
    n, p = fitted.jac.shape
    notes = []
    if n == p:
        notes.append(f"{n} points for {p} parameters: the fit is exact and cannot be judged")
    if judged.nu < 1:
        notes.append(f"covariance_dof={judged.covariance_dof:g}: too few prompts for an interval")
    if fitted.at_bound:
        notes.append(f"{model.shape} is at the end of its range {model.shape_range}")
    if judged.p_value < POOR_FIT_P:
        notes.append(f"poor fit: {p_text(judged.p_value)}, the form does not describe these points")
    return notes


def summarize(
    form: Form,
    params: Mapping[str, float],
    covar: Array,
    *,
    dof_of: Callable[[Array], float],
    estimator: str,
    ci_level: float,
    n_points: int,
    d_range: tuple[float, float],
    cut_off: float | None = None,
    chi2: float = np.nan,
    p_value: float = np.nan,
    penalty: float = np.nan,
    start_values: Mapping[str, float] | None = None,
    at_bound: bool = False,
    notes: list[str] | None = None,
) -> FitResult:
    """Turn estimates and their covariance into a `FitResult` with intervals, peak and message.

    ``dof_of`` gives the degrees of freedom of the t quantile for a linear contrast of the
    parameters; ``penalty`` is what AIC adds to χ².
    """
    theta = np.array(list(params.values()))
    p = len(theta)
    has_uncertainty = bool(np.isfinite(covar).all())
    stderr = np.sqrt(np.diag(covar))
    dofs = [dof_of(row) if has_uncertainty else np.nan for row in np.eye(p)]
    half = np.array([t_quantile(ci_level, nu) for nu in dofs]) * stderr
    ends = zip(map(float, theta - half), map(float, theta + half), strict=True)
    turn = estimate_peak(
        form,
        theta,
        covar,
        quantile=lambda contrast: t_quantile(ci_level, dof_of(contrast)),
        d_min=d_range[0],
        d_max=d_range[1],
    )
    spare = n_points - p - 1
    aic = chi2 + penalty
    return FitResult(
        form=form.name,
        estimator=estimator,
        params=dict(params),
        stderr=dict(zip(params, map(float, stderr), strict=True)),
        covar=covar,
        ci={name: Interval(*pair) for name, pair in zip(params, ends, strict=True)},
        ci_level=ci_level,
        quantile_dof=dict(zip(params, map(float, dofs), strict=True)),
        n_points=n_points,
        dof=n_points - p,
        d_min=d_range[0],
        d_max=d_range[1],
        cut_off=cut_off,
        chi2=chi2,
        p_value=p_value,
        aic=aic,
        aicc=aic + 2.0 * p * (p + 1) / spare if spare > 0 else np.nan,
        peak=turn,
        start_values=dict(start_values or {}),
        converged=bool(np.isfinite(theta).all()),
        has_uncertainty=has_uncertainty,
        at_bound=at_bound,
        message="; ".join([*(notes or []), *_peak_notes(form, turn, d_range[1])]) or "ok",
    )


def _peak_notes(form: Form, turn: PeakEstimate, d_max: float) -> list[str]:
    if form.turn_over is not None and not turn.in_range:
        return [f"no number for the peak: {turn.status}"]
    if turn.in_range and turn.sqrt_kl_ci.high > d_max:
        return ["the interval of the peak location reaches beyond the measured range"]
    return []


def jsonable(value: object) -> Any:
    """Dataclasses, arrays and mappings as JSON types; nan becomes None, ±inf becomes a string."""
    return plain(value, infinite="text")


def _fit_shape(form: Form, points: Points, whiten: Array) -> tuple[float, dict[str, float], bool]:
    """Best shape parameter by variable projection: its grid start, and whether it hit a bound."""
    if form.shape is None:
        return np.nan, {}, False
    target = whiten @ points.gold

    def chi2(log_shape: float) -> float:
        basis = whiten @ form.basis(points.sqrt_kl, math.exp(log_shape))
        coef, *_ = np.linalg.lstsq(basis, target, rcond=None)
        return float(np.sum((target - basis @ coef) ** 2))

    low, high = np.log(form.shape_range)
    grid = np.linspace(low, high, SHAPE_GRID)
    best = int(np.argmin([chi2(x) for x in grid]))
    spacing = grid[1] - grid[0]
    found = minimize_scalar(
        chi2,
        bounds=(max(grid[best] - spacing, low), min(grid[best] + spacing, high)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    at_bound = bool(min(found.x - low, high - found.x) < 1e-4 * (high - low))
    return math.exp(found.x), {form.shape: math.exp(grid[best])}, at_bound
