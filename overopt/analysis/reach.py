"""A curve at a given √KL: where it first gets there, its gold there, and its mean over a range."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from overopt.base.errors import DataError
from overopt.fits.forms import Array
from overopt.records.curves import Curve

SLOPE_POINTS = 9
"""Points of the grid on which a curve's slope is taken: finer would differentiate the noise."""


class Reach(NamedTuple):
    """Interpolation weights at G values of √KL, and where the run never got that far."""

    weights: Array
    """(G, K); rows sum to 1."""
    is_carried: NDArray[np.bool_]
    """(G,); True where the value is that of the last point, carried forward."""


def first_reach(sqrt_kl: ArrayLike, at: ArrayLike) -> Reach:
    """Weights (G, K) that give a curve's value where √KL first reaches each of G values.

    Parameters
    ----------
    sqrt_kl : (K,) √KL of the points in the order of the run, √nats; need not be monotone.
    at : (G,) values of √KL, √nats.

    Notes
    -----
    The rule is that of somebody with a budget of KL: optimise until √KL first reaches the budget
    (linear between the points at which √KL was larger than ever before); if it never does, keep
    what the run ended with.
    """
    d, grid = np.asarray(sqrt_kl, dtype=float), np.asarray(at, dtype=float)
    before = np.concatenate([[-np.inf], np.maximum.accumulate(d)[:-1]])
    records = np.flatnonzero(d > before)
    position = np.searchsorted(d[records], grid)
    is_carried = position == len(records)
    upper = records[np.minimum(position, len(records) - 1)]
    lower = records[np.maximum(np.minimum(position, len(records) - 1) - 1, 0)]
    step = np.where(upper == lower, 1.0, d[upper] - d[lower])
    share = np.where(upper == lower, 1.0, (grid - d[lower]) / step)
    weights = np.zeros((len(grid), len(d)))
    rows = np.arange(len(grid))
    weights[rows, lower] += np.where(is_carried, 0.0, 1.0 - share)
    weights[rows, upper] += np.where(is_carried, 0.0, share)
    weights[is_carried, -1] = 1.0
    return Reach(weights, is_carried)


def gain(curve: Curve, name: str) -> Array:
    """Gain of ``gold``, ``proxy`` or ``intent`` over the start, by point and prompt, (K, P).

    Where retraining replaced the proxy on the way, ``proxy`` has the mean of the records: each
    round's own proxy gave the start another score. nan where the curve has no such array.
    """
    if name not in curve.arrays:
        return np.full_like(curve.arrays["gold"], math.nan)
    over_first = curve.gain(name)
    if name == "proxy" and len({row.get("round") for row in curve.rows}) > 1:
        return over_first + (curve["proxy_gain"] - over_first.mean(axis=1))[:, None]
    return over_first


def _carrying_kl_error(curve: Curve) -> Array:
    """Gold gain (K, P) whose scatter over prompts includes that of a measured KL.

    A prompt with more KL than the mean moves a point to the right, along the curve: to first order
    its gold at a given √KL is less by slope · (KL_p − mean KL)/(2√KL). The mean is unchanged.
    """
    gold_KP = gain(curve, "gold")
    kl_KP = curve.arrays["kl"]
    d = curve["sqrt_kl"]
    error = kl_KP - kl_KP.mean(axis=1, keepdims=True)
    if d.max() == 0 or not error.any():
        return gold_KP
    grid = np.linspace(0.0, d.max(), SLOPE_POINTS)
    slope = np.gradient(first_reach(d, grid).weights @ gold_KP.mean(axis=1), grid)
    factor = np.divide(np.interp(d, grid, slope), 2.0 * d, out=np.zeros_like(d), where=d > 0)
    return gold_KP - factor[:, None] * error


def gold_at(curve: Curve, at: ArrayLike) -> Array:
    """Gold gain where √KL first reaches each of G values, by prompt, (G, P); see `first_reach`."""
    reach = first_reach(curve["sqrt_kl"], at)
    values = reach.weights @ _carrying_kl_error(curve)
    values[reach.is_carried] = gain(curve, "gold")[-1]
    return values


def area(curve: Curve, max_sqrt_kl: float) -> Array:
    """Mean over √KL in [0, ``max_sqrt_kl``] of gold gain, by prompt, (P,).

    The integral of `gold_at` divided by the range, exact for the piecewise linear curve. A run that
    ends earlier keeps its last value for the rest of the range: one may stop there.

    Raises
    ------
    DataError
        ``max_sqrt_kl`` is not positive.
    """
    if not max_sqrt_kl > 0:
        raise DataError(
            f"max_sqrt_kl = {max_sqrt_kl}: a range of √KL must be positive; did the baseline move?"
        )
    d = curve["sqrt_kl"]
    reached = min(float(d.max()), max_sqrt_kl)
    nodes = np.unique(np.concatenate([[0.0, reached], d[d < reached]]))
    width = np.diff(nodes)
    trapezoid = np.concatenate([[0.0], width]) / 2 + np.concatenate([width, [0.0]]) / 2
    inside = trapezoid @ first_reach(d, nodes).weights @ _carrying_kl_error(curve)
    return (inside + (max_sqrt_kl - reached) * gain(curve, "gold")[-1]) / max_sqrt_kl


def truncate(curve: Curve, last: int) -> Curve:
    """The curve up to and including point number ``last``: a run that was stopped there."""
    stop = last + 1
    arrays = {name: a[:stop] for name, a in curve.arrays.items()}
    return replace(curve, rows=curve.rows[:stop], arrays=arrays)
