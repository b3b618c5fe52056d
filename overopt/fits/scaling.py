"""Fit coefficients against proxy size and data: scaling lines, forecasts and their score.

Takes fits of single curves from `fit` or `replicates`. A forecast is made for a proxy that has not
been trained, is a frozen object that turns into JSON, and is scored against the fit of the proxy
once it exists. After Gao et al. 2022, figure 3: α and β are close to linear in log parameters.

The proxies are the sample. How far they lie from the line says how uncertain it is, whatever made
them do so (seeds, prompts, or the proxies themselves), so that nothing has to be assumed of the
errors of single fits. What residuals cannot show is what prompts do to all proxies alike; it comes
from the fits' values by prompt.
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

from overopt.base.errors import ConfigError, DataError
from overopt.fits.crossed import CrossedMean
from overopt.fits.fit import Band, FitResult, jsonable
from overopt.fits.forms import Array, get_form
from overopt.fits.linear import t_quantile
from overopt.fits.lines import in_common, least_squares, squares, through
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
    mean: CrossedMean
    """All coefficients in order, with their covariance over proxies and prompts."""
    residual: Array
    """(2, 2) mean squares and products of the residuals of α and β: how far a proxy, measured like
    these, lies from the line."""
    scatter: float
    """χ²/dof of the residuals in units of the fits' own errors: 1 where they explain them."""
    chi2: float
    dof: int
    """Proxies less coefficients of one line: degrees of freedom of ``residual``."""
    p_value: float
    """Probability of a larger χ² if proxies differed from the line by the fits' errors alone."""
    ci_level: float
    fitted_on: tuple[Mapping[str, Any], ...]
    """Label, size, data and coefficients of every proxy used."""

    @property
    def covar(self) -> Array:
        """Covariance of all coefficients in order: intervals by t with ``mean.dof(contrast)``."""
        return self.mean.covar

    def design(self, n_params: float, n_pairs: float | None = None) -> Array:
        """Rows for α and β, (2, number of coefficients)."""
        row = _row(self.terms, n_params, n_pairs)
        of_one = [row[: 1 if name in self.constant else None] for name in ("alpha", "beta")]
        return np.asarray(block_diag(*of_one))

    def line(self, n_params: float, n_pairs: float | None = None) -> CrossedMean:
        """(α, β) on the line, with their covariance and degrees of freedom."""
        return through(self.mean, self.design(n_params, n_pairs), np.zeros((2, 2)))

    def new_proxy(self, n_params: float, n_pairs: float | None = None) -> CrossedMean:
        """(α, β) of another proxy that is measured like these, by the same number of seeds."""
        return through(self.mean, self.design(n_params, n_pairs), self.residual)

    def slope_ci(self, name: str, term: str = "log10_n_params") -> Interval:
        """Interval of the slope of ``"alpha"`` or ``"beta"`` along one of ``terms``."""
        flat = [(group, key) for group, keys in self.coef.items() for key in keys]
        contrast = np.eye(len(flat))[flat.index((name, term))]
        half = t_quantile(self.ci_level, self.mean.dof(contrast))
        half *= float(contrast @ self.covar @ contrast) ** 0.5
        return Interval(self.coef[name][term] - half, self.coef[name][term] + half)

    def band(self, name: str, n_params: ArrayLike, n_pairs: float | None = None) -> Band:
        """The line of ``"alpha"`` or ``"beta"`` at each size, with its pointwise interval."""
        row = ("alpha", "beta").index(name)
        lines = [self.line(float(n), n_pairs) for n in np.ravel(np.asarray(n_params, dtype=float))]
        value = np.array([line.estimate[row] for line in lines])
        half = np.array(
            [
                t_quantile(self.ci_level, line.dof(np.eye(2)[row])) * line.covar[row, row] ** 0.5
                for line in lines
            ]
        )
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
    """Of (α, β): error of the line plus scatter about it."""
    ci: Mapping[str, Interval]
    """Prediction intervals by quantity, of `QUANTITIES`; see `forecast` for what they cover."""
    ci_level: float
    dof: int
    """Of the scatter of proxies about the line."""
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
    """``error`` over the standard error of the forecast, which counts the observation's own."""
    inside: bool | None
    """Whether the observed value lies in the forecast's interval; None where one is missing."""


def fit_scaling(
    points: Sequence[ScalingPoint],
    *,
    terms: Sequence[str] = ("log10_n_params",),
    constant: Sequence[str] = (),
    ci_level: float = 0.95,
) -> ScalingFit:
    """Linear regression of (α, β) on log10 parameters and pairs.

    Parameters
    ----------
    points
        Proxies with fits of one form, each with uncertainty. Fits by `fit_replicates` with the same
        number of prompts are taken to be on the same prompts, in the same columns.
    terms
        Any of ``log10_n_params``, ``log10_n_pairs``.
    constant
        Coefficients that do not vary with the terms, e.g. ``("alpha",)`` for RL.
    ci_level
        Level of bands and forecasts.

    Raises
    ------
    DataError
        Mixed forms, a fit without uncertainty, a missing size, or no more proxies than coefficients
        of a line (a line through its points says nothing about scatter).

    Notes
    -----
    Ordinary least squares, a line for α and one for β, with the mean squares and products S of their
    residuals. With prompts in common it is a two-way table of proxies and prompts with a line in the
    place of a mean: coefficients have the variance that S gives, plus that over prompts of the lines
    through each prompt's own coefficients, less their mean square about those lines. Degrees of
    freedom as in `overopt.fits.crossed`. Seeds are nested in proxies and part of S.

    Weights by the errors of single fits are not used: with a handful of seeds these are known to a
    third at best, and proxies scatter beyond them. Where fits are of very different precision, the
    line is less efficient than it could be.
    """
    points, terms, constant = list(points), tuple(terms), tuple(constant)
    _check_scaling(points, terms, constant)
    designs = _designs(points, terms, constant)
    dofs = [len(points) - x.shape[1] for x in designs]
    if min(dofs) < 1:
        n_coef = max(x.shape[1] for x in designs)
        raise DataError(
            f"{len(points)} proxies for {n_coef} coefficients of a line leave no residual; add"
            " proxies or drop terms"
        )
    table = np.array([list(p.fit.params.values()) for p in points]).T
    by_prompt_PJC = in_common([p.fit.by_prompt for p in points])
    mean, residual = least_squares(designs, table, dofs, by_prompt_PJC)
    chi2 = squares(designs, table, [p.fit.covar for p in points], by_prompt_PJC)
    values = iter(map(float, mean.estimate))
    coef = {
        name: {key: next(values) for key in ("intercept", *(() if name in constant else terms))}
        for name in ("alpha", "beta")
    }
    return ScalingFit(
        form=points[0].fit.form,
        terms=terms,
        constant=constant,
        coef=coef,
        mean=mean,
        residual=residual,
        scatter=chi2 / sum(dofs),
        chi2=chi2,
        dof=min(dofs),
        p_value=float(stats.chi2.sf(chi2, sum(dofs))),
        ci_level=ci_level,
        fitted_on=tuple(map(_described, points)),
    )


def _designs(
    points: Sequence[ScalingPoint], terms: Sequence[str], constant: Sequence[str]
) -> list[Array]:
    """Designs of α and of β, (proxies, coefficients) each."""
    rows = [_row(terms, p.n_params, p.n_pairs) for p in points]
    full = np.array(rows)
    return [full[:, : 1 if name in constant else None] for name in ("alpha", "beta")]


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
    """Coefficients and peak, with prediction intervals, of a proxy that has not been trained.

    Notes
    -----
    An interval covers, with probability ``ci_level``, what as many seeds of the new proxy as the others
    had will show over all prompts there are: it holds the error of the line, the scatter of proxies
    about it, seeds among its causes, and what prompts do to all proxies. The new proxy's true values,
    without its seeds' scatter, and a fit on the very same prompts it covers at least as often. t has
    the degrees of freedom of the residuals, three with five sizes: with few sizes intervals are wide,
    because little is known. Not covered are lines that bend beyond the sizes that they were fitted to,
    and a new proxy that is measured by fewer seeds.
    """
    made = scaling.new_proxy(n_params, n_pairs)
    theta, covar = made.estimate, made.covar

    def quantile(contrast: Array) -> float:
        return t_quantile(scaling.ci_level, made.dof(contrast))

    turn = estimate_peak(get_form(scaling.form), theta, covar, quantile=quantile)
    ci = {}
    for name, row in zip(("alpha", "beta"), np.eye(2), strict=True):
        half = quantile(row) * float(row @ covar @ row) ** 0.5
        ci[name] = Interval(float(row @ theta) - half, float(row @ theta) + half)
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

    ``inside`` asks whether the observed value lies in the forecast's interval, which is made for an
    observed one. Standard errors of the peak are by the delta method here. Where the forecast or the
    observation has no peak, ``inside`` is None and the numbers are nan.
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
                error_sigma=error / own[name] if own[name] > 0 else math.nan,
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


def _row(terms: Sequence[str], n_params: float, n_pairs: float | None) -> list[float]:
    """1 and the terms of one proxy."""
    sizes = {"log10_n_params": n_params, "log10_n_pairs": n_pairs}
    row = [1.0]
    for term in terms:
        size = sizes[term]
        if size is None or not size > 0:
            raise DataError(f"{term.removeprefix('log10_')} is {size!r}; {term} needs it positive")
        row.append(math.log10(size))
    return row


def _number(value: float | str | None) -> float:
    """A float back from JSON, where nan was None and ±inf a string."""
    return np.nan if value is None else float(value)
