"""The mean of values crossed by replicate and prompt, and its variance: a two-way table.

Prompts are common to all replicates, so neither seeds nor prompts are repetitions of each other: the
variance of the grand mean is a two-way analysis of variance, with Satterthwaite degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from overopt.fits.forms import Array

MEAN_SQUARE_QUANTILE = 0.35
"""Quantile at which mean squares are taken to have come out, for the degrees of freedom."""


class CrossedMean(NamedTuple):
    """Mean over seeds and prompts of a vector of Q quantities, with its covariance."""

    estimate: Array
    """(Q,)"""
    covar: Array
    """(Q, Q); nan where there are fewer than two prompts and fewer than two units."""
    unit_ms: Array
    """Mean square of seeds, (Q, Q), in units of the variance of the mean; 0 for one unit."""
    prompt_ms: Array
    """Mean square of prompts, likewise."""
    rest_ms: Array
    """Mean square of the interaction, likewise."""
    n_units: int
    n_prompts: int
    unit_dof: float
    """Degrees of freedom of ``unit_ms``: units − 1 where all are alike."""
    by_prompt: Array
    """(P, Q) means over units, whose mean is ``estimate``."""

    def dof(self, contrast: Array) -> float:
        """Degrees of freedom of the variance of ``contrast @ estimate``; see `crossed_mean`."""
        c = np.asarray(contrast, dtype=float)
        units, prompts = self.unit_dof, self.n_prompts - 1
        if units == 0 or prompts == 0:
            return float(max(units, prompts))
        unit, prompt, rest = (
            float(c @ ms @ c) for ms in (self.unit_ms, self.prompt_ms, self.rest_ms)
        )
        unit *= units / special.chdtri(units, 1.0 - MEAN_SQUARE_QUANTILE)
        prompt *= prompts / special.chdtri(prompts, 1.0 - MEAN_SQUARE_QUANTILE)
        spread = unit**2 / units + prompt**2 / prompts + rest**2 / (units * prompts)
        fewest = min(units, prompts)
        if spread == 0:
            return float(fewest)
        # Never fewer than the smallest level offers, nor more than all of them together.
        variance = max(unit + prompt - rest, rest)
        return float(np.clip(variance**2 / spread, fewest, self.n_units * self.n_prompts - 1))


def crossed_mean(
    values_SPQ: ArrayLike, data_seeds: Sequence[Hashable] | None = None
) -> CrossedMean:
    """Grand mean of values crossed by replicate and prompt, and its covariance.

    Parameters
    ----------
    values_SPQ
        Values of Q quantities for each replicate and common prompt, (S, P, Q).
    data_seeds
        Label of each replicate's data seed. With two or more data seeds these are the units:
        replicates are averaged within them, so that the RM-seed variance counts inside the
        data-seed variance. With one, the replicates are the units.

    Notes
    -----
    Under x_sp = θ + a_s + b_p + e_sp the variance of the mean is (MS_s + MS_p − MS_e)/(SP), where
    MS are the mean squares of a two-way table without repeats. Its expectation is at least that of
    MS_e/(SP) in every direction, so estimates below are raised to it. One unit: only prompts
    contribute, and the interval speaks of that unit alone.

    Degrees of freedom by Satterthwaite's formula, with one change. With few seeds it is anti-
    conservative, because where MS_s happens to be small it makes the variance too small and the
    degrees of freedom too many at once. So MS_s and MS_p enter the formula (not the variance) as
    large as they would be, had they come out at their 35 % quantile. The worst coverage over all
    shares of seed variance, for a nominal 95 %, then is 94.0 % rather than 92.5 % with 3 seeds and
    92.6 % rather than 88.2 % with 2, and the largest is 96.4 % (200,000 simulated experiments each,
    48 prompts).
    """
    values = np.asarray(values_SPQ, dtype=float)
    labels = [0] * len(values) if data_seeds is None else list(data_seeds)
    groups = list(dict.fromkeys(labels))
    if len(groups) > 1:
        members = [[i for i, label in enumerate(labels) if label == g] for g in groups]
        values = np.stack([values[rows].mean(axis=0) for rows in members])
    s, p, q = values.shape
    mean = values.mean(axis=(0, 1))
    unit = values.mean(axis=1) - mean
    prompt = values.mean(axis=0) - mean
    rest = (values - mean - unit[:, None] - prompt[None]).reshape(s * p, q)
    nothing = np.zeros((q, q))
    unit_ms = unit.T @ unit / (s * (s - 1)) if s > 1 else nothing
    prompt_ms = prompt.T @ prompt / (p * (p - 1)) if p > 1 else nothing
    rest_ms = rest.T @ rest / (s * p * (s - 1) * (p - 1)) if s > 1 and p > 1 else nothing
    if s < 2 and p < 2:
        covar = np.full((q, q), np.nan)
    else:
        covar = subtract_floored(unit_ms + prompt_ms, rest_ms)
    return CrossedMean(
        mean, covar, unit_ms, prompt_ms, rest_ms, s, p, float(s - 1), values.mean(axis=0)
    )


def nested_mean(groups: Sequence[ArrayLike], weights: ArrayLike) -> CrossedMean:
    """Weighted sum of group means Σ_g w_g m_g, units nested in groups, prompts common to all.

    Parameters
    ----------
    groups
        Values of each group's units and common prompts, (S_g, P); at least two units each.
    weights
        (G,) weight of each group's mean, such as those of a slope over groups.

    Notes
    -----
    Under x_gsp = θ_g + a_gs + b_gp + e_gsp, with variances of a and e of each group's own, the
    variance is Σ w_g² (MS_a,g − MS_e,g)/(S_g P) and that of Σ w_g x̄_g·p over prompts. The units'
    part has degrees of freedom by Welch and Satterthwaite. As in `crossed_mean` otherwise.
    """
    tables = [np.asarray(group, dtype=float) for group in groups]
    w = np.asarray(weights, dtype=float)
    p = tables[0].shape[1]
    units = np.array([len(table) for table in tables])
    by_prompt = w @ np.stack([table.mean(axis=0) for table in tables])
    unit = np.array([table.mean(axis=1).var(ddof=1) for table in tables]) * w**2 / units
    unit_ms = float(unit.sum())
    spread = float((unit**2 / (units - 1)).sum())
    rest_ms = prompt_ms = 0.0
    if p > 1:
        rests = [
            table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
            for table in tables
        ]
        squares = np.array([(rest**2).sum() for rest in rests])
        rest_ms = float((w**2 * squares / (units * (units - 1) * p * (p - 1))).sum())
        prompt_ms = float(by_prompt.var(ddof=1)) / p
    return CrossedMean(
        estimate=np.array([by_prompt.mean()]),
        covar=np.array([[max(unit_ms + prompt_ms - rest_ms, min(rest_ms, unit_ms + prompt_ms))]]),
        unit_ms=np.array([[unit_ms]]),
        prompt_ms=np.array([[prompt_ms]]),
        rest_ms=np.array([[rest_ms]]),
        n_units=int(units.sum()),
        n_prompts=p,
        unit_dof=unit_ms**2 / spread if spread > 0 else float((units - 1).min()),
        by_prompt=by_prompt[:, None],
    )


def subtract_floored(total: Array, rest: Array) -> Array:
    """``total − rest``, raised to ``rest`` in every direction where it falls below."""
    values, vectors = np.linalg.eigh(rest)
    if values[-1] <= 0 or values[0] <= 1e-12 * values[-1]:
        # No usable metric (no interaction noise, or fewer residuals than quantities): the diagonal
        # is floored one by one, and covariances are left unsubtracted, which errs on the safe side.
        diagonal = np.diag(total)
        wanted = np.maximum(diagonal - np.diag(rest), np.minimum(np.diag(rest), diagonal))
        scale = np.sqrt(np.divide(wanted, diagonal, out=np.ones_like(wanted), where=diagonal > 0))
        return total * np.outer(scale, scale)
    root = vectors * np.sqrt(values)
    inverse = np.linalg.inv(root)
    ratios, axes = np.linalg.eigh(inverse @ total @ inverse.T)
    back = root @ axes
    return (back * np.maximum(ratios - 1.0, 1.0)) @ back.T
