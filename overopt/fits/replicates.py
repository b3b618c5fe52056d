"""Fits and differences with intervals that hold for few seeds: per-prompt values, t quantiles.

The default road from per-prompt measurements to a claim. A linear fit of a mean curve is the mean
of the fits to each prompt's curve, so the parameters are sample means over prompts and seeds and
inherit the exact small-sample theory of means: no resampling, no inverse of an estimated covariance
of the points. Prompts are common to all replicates (crossed), so the variance of the grand mean is
a two-way analysis of variance, with Satterthwaite degrees of freedom.

`bootstrap` resamples the same values. With 3 to 5 RM seeds its percentile intervals are too short;
the intervals here are not.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from overopt.base.errors import ConfigError, DataError
from overopt.fits.crossed import CrossedMean, crossed_mean
from overopt.fits.fit import FitResult, summarize
from overopt.fits.forms import Array, Form, get_form
from overopt.fits.linear import linear_operator, quadratic_form_p, t_quantile
from overopt.fits.peaks import Interval
from overopt.fits.points import check_points

DERIVATIVE_STEP = 1e-5
"""Relative step of the central difference that gives a fitted curve's slope."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReplicateCurve:
    """One replicate of a curve, prompt by prompt. Column p is the same prompt in every replicate.

    Exactly one of ``sqrt_kl`` and ``kl_seq_nats_KP`` is given.
    """

    gold_KP: ArrayLike
    """Score of each point and prompt, (K, P), recentred so that its mean is 0 at d = 0."""
    sqrt_kl: ArrayLike | None = None
    """Known d of each point, (K,), √nats: best-of-n."""
    kl_seq_nats_KP: ArrayLike | None = None
    """Measured KL of each point and prompt, (K, P), nats: PPO. d is √ of its mean over prompts."""
    rm_seed: Hashable = 0
    """Label of the RM seed; replicates of one data seed must differ in it."""
    data_seed: Hashable = 0
    """Label of the data seed, within which RM seeds are nested."""

    def __post_init__(self) -> None:
        gold = np.asarray(self.gold_KP, dtype=float)
        where = f"replicate (data_seed={self.data_seed!r}, rm_seed={self.rm_seed!r})"
        if gold.ndim != 2 or gold.size == 0:
            raise DataError(f"gold_KP of {where} has shape {gold.shape}; it must be (K, P)")
        for row, column in np.argwhere(~np.isfinite(gold))[:1]:
            raise DataError(
                f"gold_KP of {where} is {gold[row, column]} at row {row}, prompt column {column}; "
                "drop that prompt from every replicate"
            )
        object.__setattr__(self, "gold_KP", gold)
        if (self.sqrt_kl is None) == (self.kl_seq_nats_KP is None):
            raise DataError(f"{where}: give exactly one of sqrt_kl and kl_seq_nats_KP")
        if self.sqrt_kl is not None:
            object.__setattr__(self, "sqrt_kl", np.asarray(self.sqrt_kl, dtype=float))
        else:
            kl = np.asarray(self.kl_seq_nats_KP, dtype=float)
            if kl.shape != gold.shape:
                raise DataError(
                    f"kl_seq_nats_KP of {where} has shape {kl.shape}, gold_KP {gold.shape}"
                )
            for row in np.flatnonzero(~(kl.mean(axis=1) >= 0))[:1]:
                raise DataError(
                    f"kl_seq_nats_KP of {where} has mean {kl[row].mean():g} at row {row}; its root "
                    "is d, so use a KL estimator that is not negative (k3 or exact)"
                )
            object.__setattr__(self, "kl_seq_nats_KP", kl)

    @property
    def d(self) -> Array:
        """√KL of each point, (K,), known or from the mean over prompts."""
        if self.kl_seq_nats_KP is None:
            return np.asarray(self.sqrt_kl)
        return np.sqrt(np.asarray(self.kl_seq_nats_KP).mean(axis=1))


def fit_replicates(
    curves: Sequence[ReplicateCurve],
    form: str = "bon",
    *,
    cut_off: float | None = None,
    ci_level: float = 0.95,
) -> FitResult:
    """Fit a linear form to replicate curves, with t intervals over prompts and seeds.

    The estimate is the mean over replicates of each replicate's weighted least-squares fit (for
    best-of-n, where all share their d, the fit of the mean curve). Its uncertainty is that of a
    mean over seeds and prompts: see `crossed_mean`. With one replicate the interval covers prompts
    only, and ``message`` says so.

    Parameters
    ----------
    curves
        Replicates with the same prompts in the same columns. Numbers of points may differ.
    form
        A form without shape parameter: ``bon``, ``rl``, ``rl_log1p``, ``linear``, ``gaussian_max``.
    cut_off
        Use only points with d <= ``cut_off``.
    ci_level
        Level of every interval.

    Notes
    -----
    The weights are 1/sigma² with the prompt stderr of each point. They are the same for every
    prompt, so the estimate is linear in the per-prompt values: θ̂ = mean_p A y_p. Where the KL is
    measured, an error in d moves a point along its own curve, so prompt p enters with
    y_p − R'(d) (KL_p − mean KL)/(2d) (delta method).
    """
    model = linear_form(form)
    curves = check_replicates(curves)
    pieces = [per_prompt_fit(curve, model, cut_off) for curve in pool_weights(curves)]
    seeds = [curve.data_seed for curve in curves]
    mean = crossed_mean(np.stack([piece.theta_P for piece in pieces]), seeds)
    params = dict(zip(model.params, map(float, mean.estimate), strict=True))

    chi2 = p_value = penalty = np.nan
    counts = {len(piece.d) for piece in pieces}
    n_points = max(counts)
    if len(counts) == 1:
        residuals = np.stack([piece.gold_PK - piece.basis @ mean.estimate for piece in pieces])
        points = crossed_mean(residuals, seeds)
        sigma = pieces[0].sigma
        basis = np.mean([piece.basis for piece in pieces], axis=0) / sigma[:, None]
        noise = points.covar / np.outer(sigma, sigma)
        hat = basis @ linear_operator(basis)
        chi2 = float(np.sum((points.estimate / sigma) ** 2))
        penalty = 2.0 * float(np.trace(hat @ noise))
        if n_points > len(params) and np.isfinite(noise).all():
            p_value = quadratic_form_p(chi2, noise, np.eye(n_points) - hat)
    notes = []
    if mean.n_units == 1:
        notes.append("one replicate: the intervals cover prompts, not seeds")
    if n_points == len(params):
        notes.append(f"{n_points} points for {len(params)} parameters: the fit cannot be judged")
    if mean.n_prompts < 2:
        notes.append("one prompt: no uncertainty from prompts")
    trusted = n_points > len(params) and mean.n_prompts > 1
    fit = summarize(
        model,
        params,
        mean.covar if trusted else np.full_like(mean.covar, np.nan),
        dof_of=mean.dof,
        estimator="replicates",
        ci_level=ci_level,
        n_points=n_points,
        d_range=(float(min(x.d.min() for x in pieces)), float(max(x.d.max() for x in pieces))),
        cut_off=cut_off,
        chi2=chi2,
        p_value=p_value,
        penalty=penalty,
        notes=notes,
    )
    return replace(fit, by_prompt=mean.by_prompt)


class MeanCurve(NamedTuple):
    """The mean of replicate curves, ready for `fit_curve` or a figure."""

    sqrt_kl: Array
    """(K,)"""
    gold: Array
    """(K,)"""
    sigma: Array
    """(K,) standard error over prompts and seeds."""
    covariance: Array
    """(K, K)"""
    dof: Array
    """(K,) degrees of freedom of each sigma."""
    ci_low: Array
    ci_high: Array


def mean_curve(curves: Sequence[ReplicateCurve], *, ci_level: float = 0.95) -> MeanCurve:
    """Mean gold of each point with stderr, covariance and t interval over prompts and seeds.

    Point k of every replicate is averaged with its fellows (KL before its root), so all must have
    the same number of points.
    """
    curves = check_replicates(curves)
    gold = _stack([np.asarray(curve.gold_KP).T for curve in curves])
    mean = crossed_mean(gold, [curve.data_seed for curve in curves])
    d = np.sqrt(np.mean([curve.d**2 for curve in curves], axis=0))
    dof = np.array([mean.dof(row) for row in np.eye(len(d))])
    sigma = np.sqrt(np.maximum(np.diag(mean.covar), 0.0))
    half = np.array([t_quantile(ci_level, nu) for nu in dof]) * sigma
    return MeanCurve(
        d, mean.estimate, sigma, mean.covar, dof, mean.estimate - half, mean.estimate + half
    )


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean of a − b on the same prompts, with a t interval and p-value."""

    estimate: float
    stderr: float
    ci: Interval
    ci_level: float
    dof: float
    p_value: float
    n_prompts: int
    n_replicates: int
    has_uncertainty: bool


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    data_seeds: Sequence[Hashable] | None = None,
    ci_level: float = 0.95,
) -> PairedDifference:
    """Mean difference a − b of two curves' points, or two points of a curve, prompt by prompt.

    Parameters
    ----------
    a, b
        Per-prompt values, (P,) or (S, P) for S replicates; entry by entry the same replicate and
        the same prompt (common random numbers).
    data_seeds
        Data seed of each replicate, as in `crossed_mean`.
    ci_level
        Level of the interval.

    Returns
    -------
    The difference with two-sided p-value. Fewer than two prompts: nan and
    ``has_uncertainty=False``. Several comparisons: correct their p-values with `holm`.
    """
    left, right = (np.atleast_2d(np.asarray(x, dtype=float)) for x in (a, b))
    if left.shape != right.shape or left.ndim != 2:
        raise DataError(
            f"paired values have shapes {left.shape} and {right.shape}; pair them first"
        )
    for row, column in np.argwhere(~np.isfinite(left - right))[:1]:
        raise DataError(f"difference is not finite at replicate {row}, prompt {column}")
    mean = crossed_mean((left - right)[..., None], data_seeds)
    return t_test(mean, n_replicates=len(left), known=mean.n_prompts > 1, ci_level=ci_level)


def t_test(
    mean: CrossedMean, *, n_replicates: int, known: bool = True, ci_level: float = 0.95
) -> PairedDifference:
    """Interval and two-sided p-value against 0 of a mean of one quantity; nan unless ``known``."""
    estimate = float(mean.estimate[0])
    stderr = float(np.sqrt(mean.covar[0, 0])) if known else np.nan
    dof = mean.dof(np.ones(1)) if known else np.nan
    half = t_quantile(ci_level, dof) * stderr
    if not known:
        p_value = np.nan
    elif stderr == 0:
        p_value = 1.0 if estimate == 0 else 0.0
    else:
        p_value = float(2.0 * special.stdtr(dof, -abs(estimate) / stderr))
    return PairedDifference(
        estimate=estimate,
        stderr=stderr,
        ci=Interval(estimate - half, estimate + half),
        ci_level=ci_level,
        dof=dof,
        p_value=p_value,
        n_prompts=mean.n_prompts,
        n_replicates=n_replicates,
        has_uncertainty=known,
    )


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p-values, same shape; nan stays nan and is not counted.

    Rejecting where the adjusted value is below a level keeps the chance of any false rejection
    below that level, whatever the dependence (Holm 1979).
    """
    p = np.asarray(p_values, dtype=float)
    flat = p.ravel()
    known = np.flatnonzero(np.isfinite(flat))
    order = known[np.argsort(flat[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted = np.full_like(flat, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(flat[order] * factors), 1.0)
    return adjusted.reshape(p.shape)


def check_replicates(curves: Sequence[ReplicateCurve]) -> list[ReplicateCurve]:
    """The replicates as a list, if they share their prompts and none is given twice."""
    curves = list(curves)
    if not curves:
        raise DataError("no replicate curves given")
    labels = [(curve.data_seed, curve.rm_seed) for curve in curves]
    for i, j in itertools.combinations(range(len(curves)), 2):
        if labels[i] == labels[j]:
            raise DataError(
                f"replicates {i} and {j} both have (data_seed, rm_seed) = {labels[i]!r}; a "
                "replicate counted twice makes the intervals too short"
            )
    prompts = [np.asarray(curve.gold_KP).shape[1] for curve in curves]
    for row, n in enumerate(prompts):
        if n != prompts[0]:
            raise DataError(
                f"replicate {row} has {n} prompts, replicate 0 has {prompts[0]}; score the same "
                "prompts with every replicate"
            )
    return curves


class WeightedCurve(NamedTuple):
    """A replicate with the sigma that weighs its points in the fit."""

    curve: ReplicateCurve
    sigma: Array
    """(K,) prompt standard error, pooled over replicates with the same d."""


def pool_weights(curves: Sequence[ReplicateCurve]) -> list[WeightedCurve]:
    """Prompt stderr of each point; one for all with the same d, so that means and fits commute."""
    n = np.asarray(curves[0].gold_KP).shape[1]
    if n < 2:
        return [WeightedCurve(curve, np.ones(len(curve.d))) for curve in curves]
    variances = [np.var(np.asarray(curve.gold_KP), axis=1, ddof=1) / n for curve in curves]
    if all(np.array_equal(curve.d, curves[0].d) for curve in curves):
        variances = [np.mean(variances, axis=0)] * len(curves)
    return [WeightedCurve(c, np.sqrt(v)) for c, v in zip(curves, variances, strict=True)]


class PromptFit(NamedTuple):
    """A replicate's fit, prompt by prompt."""

    d: Array
    """(K,) points used."""
    sigma: Array
    """(K,)"""
    basis: Array
    """(K, p)"""
    gold_PK: Array
    """Per-prompt values that carry the errors of gold and of KL."""
    theta_P: Array
    """(P, p) per-prompt parameters; their mean is the fit of the replicate."""


def per_prompt_fit(weighted: WeightedCurve, form: Form, cut_off: float | None) -> PromptFit:
    """Per-prompt parameters of one replicate, whose mean over prompts is its fit."""
    curve = weighted.curve
    gold_KP = np.asarray(curve.gold_KP)
    d, gold, sigma, _, rows = check_points(
        curve.d,
        gold_KP.mean(axis=1),
        weighted.sigma,
        cut_off=cut_off,
        min_points=len(form.params),
        increasing=curve.kl_seq_nats_KP is None,
    )
    basis = form.basis(d, np.nan)
    operator = linear_operator(basis / sigma[:, None]) / sigma
    gold_KP = gold_KP[rows]
    if curve.kl_seq_nats_KP is not None:
        theta = operator @ gold
        up, down = (form.basis(d * (1.0 + h), np.nan) @ theta for h in _STEPS)
        slope = (up - down) / (2.0 * DERIVATIVE_STEP * d)
        kl_KP = np.asarray(curve.kl_seq_nats_KP)[rows]
        error = (kl_KP - kl_KP.mean(axis=1, keepdims=True)) / (2.0 * d[:, None])
        gold_KP = gold_KP - slope[:, None] * error
    return PromptFit(d, sigma, basis, gold_KP.T, (operator @ gold_KP).T)


_STEPS = (DERIVATIVE_STEP, -DERIVATIVE_STEP)


def linear_form(name: str) -> Form:
    """The form ``name``, if `fit_replicates` can fit it; else `ConfigError`."""
    form = get_form(name)
    if form.shape is not None:
        raise ConfigError(
            f"form {name!r} has the shape parameter {form.shape!r} and is not linear; use "
            "fit_curve with the covariance from mean_curve"
        )
    return form


def _stack(arrays: Sequence[Array]) -> Array:
    shapes = [array.shape for array in arrays]
    for row, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise DataError(
                f"replicate {row} has {shape[1]} points, replicate 0 has {shapes[0][1]}; only "
                "curves with the same points can be averaged point by point"
            )
    return np.stack(arrays)
