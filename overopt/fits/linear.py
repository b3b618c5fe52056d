"""The linear algebra and the quantiles behind every fit.

Every estimator here is ordinary least squares on rows that were scaled or whitened first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from overopt.base.errors import FitError
from overopt.fits.forms import Array, Form


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


def half_width(values: ArrayLike, level: float = 0.95) -> Array:
    """Half the t interval of the mean of ``values`` (S, …) over its S ≥ 2 replicates, (…)."""
    x = np.asarray(values, dtype=float)
    return t_quantile(level, len(x) - 1) * x.std(0, ddof=1) / len(x) ** 0.5


def quadratic_form_p(chi2: float, noise: Array, residual_maker: Array) -> float:
    """P(‖M e‖² > χ²) for e ~ N(0, ``noise``), by a scaled χ² with the same mean and variance."""
    product = residual_maker @ noise @ residual_maker.T
    mean, half_variance = float(np.trace(product)), float(np.sum(product**2))
    scale = half_variance / mean
    return float(special.chdtrc(mean / scale, chi2 / scale))


def whitener(covariance: Array) -> Array:
    """L⁻¹ with L Lᵀ the covariance of points (K, K): whitened points have covariance 1."""
    try:
        return np.asarray(np.linalg.inv(np.linalg.cholesky(covariance)))
    except np.linalg.LinAlgError:
        raise FitError(
            "covariance of the points is not positive definite (points of one pool nearly "
            "repeat each other, or fewer prompts than points); use estimator='wls'"
        ) from None
