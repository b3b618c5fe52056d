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
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy.optimize import brentq, minimize_scalar

from overopt.base.errors import ConfigError, DataError, FitError
from overopt.base.files import plain
from overopt.fits.forms import Array, Form, get_form, peak
from overopt.fits.peaks import Interval, PeakEstimate, estimate_peak

Estimator = Literal["wls", "gls"]

ZERO_TOLERANCE_SIGMA = 5.0
"""Gold at d = 0 may differ from 0 by this many of its sigmas before it counts as not recentred."""

POOR_FIT_P = 1e-3
"""Goodness-of-fit p-value below which the message warns."""

SHAPE_GRID = 33
"""Starting grid for a shape parameter, log-spaced over its range."""


class Band(NamedTuple):
    """A fitted curve and its pointwise interval, each of the shape of ``sqrt_kl``."""

    gold: Array
    low: Array
    high: Array


class Points(NamedTuple):
    """Validated points that carry information (d > 0), in order of d."""

    sqrt_kl: Array
    """(K,)"""
    gold: Array
    """(K,)"""
    sigma: Array
    """(K,)"""
    covariance: Array
    """(K, K)"""
    rows: NDArray[np.intp]
    """(K,) index of each point in the caller's arrays."""


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
        """Plain lists, numbers and strings for JSON; see `jsonable`."""
        return jsonable(self)


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
    nu = math.inf if covariance_dof is None else float(covariance_dof)
    # Whitened rows turn every estimator into ordinary least squares.
    if estimator == "wls":
        whiten: Array = np.diag(1.0 / points.sigma)
    else:
        whiten = _whitener(points)
    shape, start, at_bound = _fit_shape(model, points, whiten)
    basis = model.basis(points.sqrt_kl, shape)
    coef = linear_operator(whiten @ basis) @ (whiten @ points.gold)
    values = coef if model.shape is None else np.append(coef, shape)
    params = dict(zip(model.params, map(float, values), strict=True))

    jac = whiten @ jacobian(model, points.sqrt_kl, params)
    residual = whiten @ (points.gold - basis @ coef)
    chi2 = float(residual @ residual)
    n, p = jac.shape
    dof = n - p
    operator = linear_operator(jac)
    noise = whiten @ points.covariance @ whiten.T
    covar = operator @ noise @ operator.T
    penalty = 2.0 * float(np.trace(jac @ operator @ noise))
    p_value = quadratic_form_p(chi2, noise, np.eye(n) - jac @ operator) if dof > 0 else np.nan
    if estimator == "gls" and np.isfinite(nu):
        if nu <= dof:
            raise FitError(
                f"estimator='gls' with covariance_dof={nu:g} needs more degrees of freedom than "
                f"the {dof} residual contrasts of {n} points; use estimator='wls', fewer points "
                "or more prompts",
                best=params,
            )
        if dof > 0:
            covar = covar * (nu / (nu - dof) * (1.0 + chi2 / nu))
            p_value = float(special.fdtrc(dof, nu - dof + 1, chi2 * (nu - dof + 1) / (nu * dof)))
        nu = nu - dof

    notes = []
    if dof == 0:
        notes.append(f"{n} points for {p} parameters: the fit is exact and cannot be judged")
    if nu < 1:
        notes.append(f"covariance_dof={covariance_dof:g}: too few prompts for an interval")
    if at_bound:
        notes.append(f"{model.shape} is at the end of its range {model.shape_range}")
    if p_value < POOR_FIT_P:
        notes.append(f"poor fit: p = {p_value:.2g}, the form does not describe these points")
    trusted = dof > 0 and nu >= 1 and bool(np.isfinite(covar).all())
    return summarize(
        model,
        params,
        covar if trusted else np.full((p, p), np.nan),
        dof_of=lambda _: nu,
        estimator=estimator,
        ci_level=ci_level,
        n_points=n,
        d_range=(float(points.sqrt_kl[0]), float(points.sqrt_kl[-1])),
        cut_off=cut_off,
        chi2=chi2,
        p_value=p_value,
        penalty=penalty,
        start_values=start,
        at_bound=at_bound,
        notes=notes,
    )


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
    turn = estimate_peak(
        form,
        theta,
        covar,
        quantile=lambda contrast: t_quantile(ci_level, dof_of(contrast)),
        d_min=d_range[0],
        d_max=d_range[1],
    )
    notes = list(notes or [])
    if form.turn_over is not None and not turn.in_range:
        notes.append(f"no number for the peak: {turn.status}")
    elif turn.in_range and turn.sqrt_kl_ci.high > d_range[1]:
        notes.append("the interval of the peak location reaches beyond the measured range")
    spare = n_points - p - 1
    aic = chi2 + penalty
    return FitResult(
        form=form.name,
        estimator=estimator,
        params=dict(params),
        stderr=dict(zip(params, map(float, stderr), strict=True)),
        covar=covar,
        ci={
            name: Interval(float(t - h), float(t + h))
            for name, t, h in zip(params, theta, half, strict=True)
        },
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
        message="; ".join(notes) or "ok",
    )


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
    whiten = _whitener(points)
    basis = whiten @ model.basis(points.sqrt_kl, np.nan)
    target = whiten @ points.gold
    theta = linear_operator(basis) @ target
    best = float(np.sum((target - basis @ theta) ** 2))
    rise = t_quantile(ci_level, math.inf) ** 2
    where, height = (float(v) for v in peak(form, theta[0], theta[1]))
    if not (np.isfinite(where) and where > 0):
        raise FitError("the fitted curve has no maximum to profile", best=theta)

    def direction(d: float) -> Array:
        # With the peak at d, (α, β) = β (h(d), 1): a model with one coefficient.
        return basis @ np.array([float(turn.ratio(np.array(d))), 1.0])

    def chi2_location(d: float) -> float:
        x = direction(d)
        return float(target @ target - (x @ target) ** 2 / (x @ x))

    def chi2_height(value: float) -> float:
        def at(log_d: float) -> float:
            d = np.array(math.exp(log_d))
            beta = value / float(d * (turn.ratio(d) - turn.psi(d)))
            return float(np.sum((target - beta * direction(float(d))) ** 2))

        centre = math.log(where)
        return float(
            minimize_scalar(
                at, bounds=(centre - 3.0, centre + 3.0), method="bounded", options={"xatol": 1e-10}
            ).fun
        )

    profile, centre = {
        "peak_sqrt_kl": (chi2_location, where),
        "peak_gold": (chi2_height, height),
    }[quantity]

    def excess(log_value: float) -> float:
        return profile(math.exp(log_value)) - best - rise

    ends = []
    for sign in (-1.0, 1.0):
        step = 1e-3
        while excess(math.log(centre) + sign * step) < 0:
            step *= 1.5
            if step > 3.0:
                raise FitError(
                    f"{quantity} is unbounded at level {ci_level:g}: the turn-over is not "
                    "significant; measure further out or with more prompts",
                    best=centre,
                )
        inside = math.log(centre) + sign * (step / 1.5 if step > 1e-3 else 0.0)
        end = brentq(excess, inside, math.log(centre) + sign * step, xtol=1e-13)
        ends.append(math.exp(float(end)))
    return Interval(*ends)


def check_points(
    sqrt_kl: ArrayLike,
    gold: ArrayLike,
    sigma: ArrayLike | None,
    *,
    covariance: ArrayLike | None = None,
    cut_off: float | None = None,
    min_points: int = 1,
    increasing: bool = True,
) -> Points:
    """Validate the points of a curve and keep those that inform a fit: 0 < d <= ``cut_off``.

    ``increasing=False`` is for a measured KL, which noise may send back a little.
    Raises `DataError` naming the column (argument), the row index, the value and the remedy.
    """
    d = _column(sqrt_kl, "sqrt_kl")
    y = _column(gold, "gold")
    _same_length(d, y, "gold")
    cov: Array | None = None
    if covariance is not None:
        cov = np.asarray(covariance, dtype=float)
        if cov.shape != (len(d), len(d)) or not np.isfinite(cov).all():
            raise DataError(
                f"covariance has shape {cov.shape}; it must be finite, ({len(d)}, {len(d)})"
            )
        if not np.allclose(cov, cov.T, rtol=1e-6, atol=1e-12 * float(np.abs(cov).max(initial=0))):
            raise DataError("covariance is not symmetric")
    if sigma is not None:
        s = _column(sigma, "sigma")
        _same_length(d, s, "sigma")
    elif cov is not None:
        s = np.sqrt(np.maximum(np.diag(cov), 0.0))
    else:
        raise DataError("sigma is None; give the standard error of each point, or a covariance")

    for row in np.flatnonzero(np.diff(d) <= 0)[:1] + 1 if increasing else ():
        raise DataError(
            f"sqrt_kl must increase strictly: row {row} is {d[row]:g} after {d[row - 1]:g}; sort "
            "the points and merge repeated ones; a measured KL that turns back, as PPO's may, is "
            "for fit_replicates (records: fit_records), which takes values by prompt"
        )
    for row in np.flatnonzero(d < 0)[:1]:
        raise DataError(f"sqrt_kl row {row} is {d[row]:g}; a root of a KL is at least 0")
    for row in np.flatnonzero((s < 0) | ((s == 0) & (d > 0)))[:1]:
        raise DataError(
            f"sigma row {row} is {s[row]:g}; it is the standard error of the point and must be "
            "positive (too few prompts give no stderr: drop the point)"
        )
    if len(d) and d[0] == 0 and abs(y[0]) > ZERO_TOLERANCE_SIGMA * s[0] + 1e-9:
        raise DataError(
            f"gold row 0 is {y[0]:g} at sqrt_kl 0; subtract the initial policy's score first"
        )

    keep = d > 0
    if cut_off is not None:
        keep &= d <= cut_off
    rows = np.flatnonzero(keep)
    if len(rows) < max(min_points, 1):
        limit = "" if cut_off is None else f" and up to cut_off={cut_off:g}"
        raise DataError(
            f"{len(rows)} points above sqrt_kl 0{limit}; the form needs at least {min_points}"
        )
    s = s[rows]
    return Points(
        d[rows], y[rows], s, np.diag(s**2) if cov is None else cov[np.ix_(rows, rows)], rows
    )


def linear_operator(design: Array) -> Array:
    """Least-squares operator A with A y = argmin ‖y − X θ‖, batched: (..., K, p) -> (..., p, K).

    By QR. Weights enter by scaling the rows of ``design`` (and of y).
    """
    q, r = np.linalg.qr(design)
    diagonal = np.abs(np.diagonal(r, axis1=-2, axis2=-1))
    if (diagonal.min(axis=-1) <= 1e-12 * diagonal.max(axis=-1)).any():
        raise FitError(
            "the points do not determine the parameters (design matrix of deficient rank); use "
            "points at more values of sqrt_kl"
        )
    return np.linalg.solve(r, np.swapaxes(q, -1, -2))


def jacobian(form: Form, sqrt_kl: Array, params: Mapping[str, float]) -> Array:
    """Derivative of the form by its parameters, (..., K, p): the basis, then the shape column."""
    shape = np.nan if form.shape is None else float(params[form.shape])
    basis = form.basis(sqrt_kl, shape)
    if form.shape is None:
        return basis
    coef = np.array([params[name] for name in form.linear])
    step = 1e-5 * shape
    slope = (form.basis(sqrt_kl, shape + step) - form.basis(sqrt_kl, shape - step)) @ coef
    return np.concatenate([basis, (slope / (2.0 * step))[..., None]], axis=-1)


def t_quantile(level: float, dof: float) -> float:
    """Two-sided quantile of Student's t at ``level``; normal for infinite ``dof``, nan below 1."""
    if not dof >= 1:
        return np.nan
    if np.isinf(dof):
        return float(special.ndtri(0.5 + level / 2.0))
    return float(special.stdtrit(dof, 0.5 + level / 2.0))


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


def quadratic_form_p(chi2: float, noise: Array, residual_maker: Array) -> float:
    """P(‖M e‖² > χ²) for e ~ N(0, ``noise``), by a scaled χ² with the same mean and variance."""
    product = residual_maker @ noise @ residual_maker.T
    mean, half_variance = float(np.trace(product)), float(np.sum(product**2))
    scale = half_variance / mean
    return float(special.chdtrc(mean / scale, chi2 / scale))


def _whitener(points: Points) -> Array:
    """L⁻¹ with L Lᵀ the covariance of the points: whitened points have covariance 1."""
    try:
        return np.asarray(np.linalg.inv(np.linalg.cholesky(points.covariance)))
    except np.linalg.LinAlgError:
        raise FitError(
            "covariance of the points is not positive definite (points of one pool nearly "
            "repeat each other, or fewer prompts than points); use estimator='wls'"
        ) from None


def _column(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise DataError(f"{name} has shape {array.shape}; give one value per point")
    for row in np.flatnonzero(~np.isfinite(array))[:1]:
        raise DataError(f"{name} row {row} is {array[row]}; drop points that were not measured")
    return array


def _same_length(d: Array, column: Array, name: str) -> None:
    if len(d) != len(column):
        raise DataError(f"{name} has {len(column)} rows and sqrt_kl has {len(d)}")
