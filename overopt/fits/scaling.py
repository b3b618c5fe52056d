"""Fit coefficients against proxy size and data: scaling lines, forecasts and their score.

Takes fits of single curves from `fit` or `replicates`. A forecast is made for a proxy that has not
been trained, is a frozen object that turns into JSON, and is scored against the fit of the proxy
once it exists. After Gao et al. 2022, figure 3: α and β are close to linear in log parameters.

Differs from the reference in carrying the covariance of every fit through to the forecast, and in
counting the scatter of proxies about the line, beyond what their own errors explain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.linalg import block_diag

from overopt.base.errors import ConfigError, DataError, FitError
from overopt.fits.fit import Band, FitResult, jsonable
from overopt.fits.forms import Array, get_form
from overopt.fits.linear import linear_operator, t_quantile
from overopt.fits.peaks import Interval, estimate_peak

QUANTITIES = ("alpha", "beta", "peak_sqrt_kl", "peak_gold")
"""What a forecast speaks of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScalingPoint:
    """A proxy and the fit of its curve."""

    label: str
    n_params: float
    """Non-embedding parameters of the proxy."""
    fit: FitResult
    n_pairs: float | None = None
    """Unique comparisons it was trained on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScalingFit:
    """α and β as linear functions of log10 parameters (and log10 pairs)."""

    form: str
    terms: tuple[str, ...]
    """Explanatory terms, from ``log10_n_params`` and ``log10_n_pairs``."""
    constant: tuple[str, ...]
    """Coefficients held constant over proxies."""
    coef: Mapping[str, Mapping[str, float]]
    """``coef["beta"]["log10_n_params"]``; each also has an ``intercept``."""
    covar: Array
    """Covariance of all coefficients in order, already multiplied by ``scatter``."""
    scatter: float
    """max(1, χ²/dof): how much wider proxies scatter about the line than their errors explain."""
    excess_covar: Array
    """(2, 2) variance of a new proxy's true (α, β) about the line: (scatter − 1) · mean error."""
    chi2: float
    dof: int
    p_value: float
    ci_level: float
    fitted_on: tuple[Mapping[str, Any], ...]
    """Label, size, data and coefficients of every proxy used."""

    def design(self, n_params: float, n_pairs: float | None = None) -> Array:
        """Rows for α and β, (2, number of coefficients)."""
        return _design(self.terms, self.constant, n_params, n_pairs)

    def mean(self, n_params: float, n_pairs: float | None = None) -> tuple[Array, Array]:
        """(α, β) on the line, (2,), and the covariance of the line there, (2, 2)."""
        rows = self.design(n_params, n_pairs)
        flat = np.array([v for group in self.coef.values() for v in group.values()])
        return rows @ flat, rows @ self.covar @ rows.T

    def band(self, name: str, n_params: ArrayLike, n_pairs: float | None = None) -> Band:
        """The line of ``"alpha"`` or ``"beta"`` at each size, with its pointwise interval."""
        row = ("alpha", "beta").index(name)
        pairs = [self.mean(float(n), n_pairs) for n in np.ravel(np.asarray(n_params, dtype=float))]
        value = np.array([mean[row] for mean, _ in pairs])
        half = t_quantile(self.ci_level, self.dof) * np.sqrt([cov[row, row] for _, cov in pairs])
        return Band(value, value - half, value + half)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a proxy not yet trained is predicted to do; plain numbers, ready for JSON."""

    form: str
    n_params: float
    n_pairs: float | None
    alpha: float
    beta: float
    covar: tuple[tuple[float, float], tuple[float, float]]
    """Of the new proxy's true (α, β): error of the line plus scatter about it."""
    ci: Mapping[str, Interval]
    """By quantity, of `QUANTITIES`."""
    ci_level: float
    dof: int
    peak_status: str
    """``in_range`` where the forecast has a significant turn-over (at any d)."""
    peak_sqrt_kl: float
    peak_gold: float
    terms: tuple[str, ...]
    constant: tuple[str, ...]
    fitted_on: tuple[Mapping[str, Any], ...]

    def to_dict(self) -> Any:
        """JSON types; see `jsonable`."""
        return jsonable(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Forecast:
        """The forecast that `to_dict` wrote; TypeError, ValueError or KeyError where it is none."""
        kinds = {"float": (int, float), "int": (int,), "str": (str,)}
        for field in fields(cls):
            value = data[field.name]
            if field.name.startswith("peak_") and field.name != "peak_status":
                continue  # may be infinite, or not there
            if type(value) not in kinds.get(str(field.type), (type(value),)):
                raise TypeError(f"{field.name} = {value!r}: must be of type {field.type}")
        if not data["n_params"] > 0 or type(data["n_pairs"]) not in (int, float, type(None)):
            raise ValueError("n_params must be positive, and n_pairs a number or null")
        a, b = data["covar"]
        return cls(
            **{
                **data,
                "covar": ((_number(a[0]), _number(a[1])), (_number(b[0]), _number(b[1]))),
                "ci": {k: Interval(_number(v[0]), _number(v[1])) for k, v in data["ci"].items()},
                "peak_sqrt_kl": _number(data["peak_sqrt_kl"]),
                "peak_gold": _number(data["peak_gold"]),
                "terms": tuple(data["terms"]),
                "constant": tuple(data["constant"]),
                "fitted_on": tuple(data["fitted_on"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class ForecastScore:
    """One quantity of a forecast against what was then measured."""

    quantity: str
    forecast: float
    ci: Interval
    observed: float
    observed_stderr: float
    error: float
    """Observed minus forecast."""
    error_sigma: float
    """``error`` over the combined standard error of forecast and observation."""
    inside: bool | None
    """Whether the observed value lies in the forecast's interval; None where one is missing."""


def fit_scaling(
    points: Sequence[ScalingPoint],
    *,
    terms: Sequence[str] = ("log10_n_params",),
    constant: Sequence[str] = (),
    covariance: ArrayLike | None = None,
    ci_level: float = 0.95,
) -> ScalingFit:
    """Weighted linear regression of (α, β) on log10 parameters and pairs.

    Parameters
    ----------
    points
        Proxies with fits of one form, each with uncertainty.
    terms
        Any of ``log10_n_params``, ``log10_n_pairs``.
    constant
        Coefficients that do not vary with the terms, e.g. ``("alpha",)`` for RL.
    covariance
        Covariance of (α₁, β₁, α₂, β₂, ...), (2n, 2n), for fits that share prompts. Without it the
        fits count as independent of each other; α and β of one fit never do.
    ci_level
        Level of bands and forecasts.

    Raises
    ------
    DataError
        Mixed forms, a fit without uncertainty, a missing size, or no more equations than
        coefficients (a line through its points says nothing about scatter).

    Notes
    -----
    Generalized least squares with the fits' covariances, multiplied by max(1, χ²/dof) (Birge) for
    scatter between proxies; t quantiles with ``dof``.
    """
    points, terms, constant = list(points), tuple(terms), tuple(constant)
    _check_scaling(points, terms, constant)
    n_coef = 2 * (1 + len(terms)) - len(terms) * len(set(constant))
    dof = 2 * len(points) - n_coef
    if dof < 1:
        raise DataError(
            f"{len(points)} proxies for {n_coef} coefficients leave no residual; add proxies or "
            "drop terms"
        )
    design = np.concatenate([_design(terms, constant, p.n_params, p.n_pairs) for p in points])
    target = np.concatenate([np.array(list(p.fit.params.values())) for p in points])
    errors = _errors(points, covariance)
    try:
        whiten = np.linalg.inv(np.linalg.cholesky(errors))
    except np.linalg.LinAlgError:
        raise FitError("covariance of the fits is not positive definite") from None
    operator = linear_operator(whiten @ design)
    theta = operator @ (whiten @ target)
    chi2 = float(np.sum((whiten @ (target - design @ theta)) ** 2))
    scatter = max(1.0, chi2 / dof)
    mean_error = np.mean(
        [errors[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] for i in range(len(points))], axis=0
    )
    values = iter(map(float, theta))
    coef = {
        name: {key: next(values) for key in ("intercept", *(() if name in constant else terms))}
        for name in ("alpha", "beta")
    }
    return ScalingFit(
        form=points[0].fit.form,
        terms=terms,
        constant=constant,
        coef=coef,
        covar=scatter * (operator @ operator.T),
        scatter=scatter,
        excess_covar=(scatter - 1.0) * mean_error,
        chi2=chi2,
        dof=dof,
        p_value=float(stats.chi2.sf(chi2, dof)),
        ci_level=ci_level,
        fitted_on=tuple(map(_described, points)),
    )


def _check_scaling(
    points: Sequence[ScalingPoint], terms: Sequence[str], constant: Sequence[str]
) -> None:
    for term in terms:
        if term not in ("log10_n_params", "log10_n_pairs"):
            raise ConfigError(f"unknown term {term!r}; known: log10_n_params, log10_n_pairs")
    for name in constant:
        if name not in ("alpha", "beta"):
            raise ConfigError(f"constant names {name!r}; known: alpha, beta")
    for row, point in enumerate(points):
        if tuple(point.fit.params) != ("alpha", "beta") or point.fit.form != points[0].fit.form:
            raise DataError(
                f"point {row} ({point.label}) is a fit of {point.fit.form!r}; use one "
                "form with alpha and beta for all"
            )
        if not point.fit.has_uncertainty:
            raise DataError(
                f"point {row} ({point.label}) has no uncertainty: {point.fit.message}; drop it"
            )


def _errors(points: Sequence[ScalingPoint], covariance: ArrayLike | None) -> Array:
    """Covariance of (α₁, β₁, α₂, β₂, ...), (2n, 2n), as given or of independent fits."""
    if covariance is None:
        return np.asarray(block_diag(*(p.fit.covar for p in points)))
    errors = np.asarray(covariance, dtype=float)
    n = 2 * len(points)
    if errors.shape != (n, n):
        raise DataError(f"covariance has shape {errors.shape}; it must be {(n, n)}")
    return errors


def _described(point: ScalingPoint) -> dict[str, Any]:
    """What a forecast keeps of a proxy that its line was fitted on."""
    return {
        "label": point.label,
        "n_params": point.n_params,
        "n_pairs": point.n_pairs,
        "cut_off": point.fit.cut_off,
        "params": dict(point.fit.params),
        "stderr": dict(point.fit.stderr),
    }


def forecast(scaling: ScalingFit, n_params: float, n_pairs: float | None = None) -> Forecast:
    """Coefficients and peak, with intervals, of a proxy that has not been trained.

    The intervals are for the new proxy's true values: they hold the error of the line and the
    scatter of proxies about it, not the measurement error the new proxy will have.
    """
    theta, line = scaling.mean(n_params, n_pairs)
    covar = line + scaling.excess_covar
    q = t_quantile(scaling.ci_level, scaling.dof)
    turn = estimate_peak(get_form(scaling.form), theta, covar, quantile=lambda _: q)
    ci = {
        name: Interval(float(t - q * s), float(t + q * s))
        for name, t, s in zip(("alpha", "beta"), theta, np.sqrt(np.diag(covar)), strict=True)
    }
    return Forecast(
        form=scaling.form,
        n_params=n_params,
        n_pairs=n_pairs,
        alpha=float(theta[0]),
        beta=float(theta[1]),
        covar=(
            (float(covar[0, 0]), float(covar[0, 1])),
            (float(covar[1, 0]), float(covar[1, 1])),
        ),
        ci=ci | {"peak_sqrt_kl": turn.sqrt_kl_ci, "peak_gold": turn.gold_ci},
        ci_level=scaling.ci_level,
        dof=scaling.dof,
        peak_status=turn.status,
        peak_sqrt_kl=turn.sqrt_kl,
        peak_gold=turn.gold,
        terms=scaling.terms,
        constant=scaling.constant,
        fitted_on=scaling.fitted_on,
    )


def score_forecast(forecast: Forecast, observed: FitResult) -> list[ForecastScore]:
    """Compare a forecast with the fit of the proxy it was made for, one row per quantity.

    ``inside`` asks whether the observed value lies in the forecast's interval; ``error_sigma``
    divides by both errors. Standard errors of the peak are by the delta method here. Where the
    forecast or the observation has no peak, ``inside`` is None and the numbers are nan.
    """
    if observed.form != forecast.form:
        raise DataError(
            f"forecast is for form {forecast.form!r}, observed fit is {observed.form!r}"
        )
    predicted = {name: getattr(forecast, name) for name in QUANTITIES}
    measured = {
        **observed.params,
        "peak_sqrt_kl": observed.peak_sqrt_kl,
        "peak_gold": observed.peak_gold,
    }
    own = _stderrs(forecast.form, predicted, np.array(forecast.covar))
    theirs = _stderrs(observed.form, measured, observed.covar)
    rows = []
    for name in QUANTITIES:
        error = measured[name] - predicted[name]
        low, high = forecast.ci[name]
        known = math.isfinite(error)
        rows.append(
            ForecastScore(
                quantity=name,
                forecast=predicted[name],
                ci=Interval(low, high),
                observed=measured[name],
                observed_stderr=theirs[name],
                error=error,
                error_sigma=error / math.hypot(own[name], theirs[name]),
                inside=low <= measured[name] <= high if known else None,
            )
        )
    return rows


def _stderrs(form: str, values: Mapping[str, float], covar: Array) -> dict[str, float]:
    """Standard errors of `QUANTITIES`, delta method for the peak; nan where it has no number."""
    turn = get_form(form).turn_over
    where = values["peak_sqrt_kl"]
    gradients = {"alpha": np.array([1.0, 0.0]), "beta": np.array([0.0, 1.0])}
    if turn is None or not math.isfinite(where):
        nothing = np.full(2, np.nan)
        gradients |= {"peak_sqrt_kl": nothing, "peak_gold": nothing}
    else:
        step = 1e-6 * where
        slope = float(turn.ratio(np.array(where + step)) - turn.ratio(np.array(where - step))) / (
            2.0 * step
        )
        alpha, beta = values["alpha"], values["beta"]
        gradients["peak_sqrt_kl"] = np.array([1.0 / beta, -alpha / beta**2]) / slope
        gradients["peak_gold"] = where * np.array([1.0, -float(turn.psi(np.array(where)))])
    return {name: float(np.sqrt(g @ covar @ g)) for name, g in gradients.items()}


def _design(
    terms: Sequence[str], constant: Sequence[str], n_params: float, n_pairs: float | None
) -> Array:
    """Rows of α and β for one proxy, (2, coefficients of α then of β)."""
    sizes = {"log10_n_params": n_params, "log10_n_pairs": n_pairs}
    slopes = []
    for term in terms:
        size = sizes[term]
        if size is None or not size > 0:
            raise DataError(f"{term.removeprefix('log10_')} is {size!r}; {term} needs it positive")
        slopes.append(math.log10(size))
    rows = [np.array([[1.0, *(() if name in constant else slopes)]]) for name in ("alpha", "beta")]
    return np.asarray(block_diag(*rows))


def _number(value: float | str | None) -> float:
    """A float back from JSON, where nan was None and ±inf a string."""
    return np.nan if value is None else float(value)
