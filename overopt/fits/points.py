"""The points of a curve: what a fit may be given, and which of it it uses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from overopt.base.errors import DataError
from overopt.fits.forms import Array

ZERO_TOLERANCE_SIGMA = 5.0
"""Gold at d = 0 may differ from 0 by this many of its sigmas before it counts as not recentred."""


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
    cov = None if covariance is None else _covariance(covariance, len(d))
    s = _sigma(sigma, cov, d)
    _check_rows(d, y, s, increasing)
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


def _covariance(covariance: ArrayLike, n_points: int) -> Array:
    cov = np.asarray(covariance, dtype=float)
    if cov.shape != (n_points, n_points) or not np.isfinite(cov).all():
        raise DataError(
            f"covariance has shape {cov.shape}; it must be finite, ({n_points}, {n_points})"
        )
    if not np.allclose(cov, cov.T, rtol=1e-6, atol=1e-12 * float(np.abs(cov).max(initial=0))):
        raise DataError("covariance is not symmetric")
    return cov


def _sigma(sigma: ArrayLike | None, cov: Array | None, d: Array) -> Array:
    """Standard error of each point: as given, or the diagonal of the covariance."""
    if sigma is not None:
        s = _column(sigma, "sigma")
        _same_length(d, s, "sigma")
        return s
    if cov is None:
        raise DataError("sigma is None; give the standard error of each point, or a covariance")
    return np.sqrt(np.maximum(np.diag(cov), 0.0))


def _check_rows(d: Array, y: Array, s: Array, increasing: bool) -> None:
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
