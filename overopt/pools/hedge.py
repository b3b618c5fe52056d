"""Hedged n: the n at which to stop best-of-n, chosen where gold is known."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from overopt.base.errors import DataError
from overopt.pools.table import Floats


class HedgedN(NamedTuple):
    """A choice of n for best-of-n."""

    n: float
    """Real-valued n of highest expected gold."""
    is_interior: bool
    """False where gold is highest at an end of the range, 1 or ``max_n``."""


def hedge_n(proxy_PN: ArrayLike, gold_PN: ArrayLike, *, max_n: float | None = None) -> HedgedN:
    """The n of highest expected gold of best-of-n on tuning prompts.

    Parameters
    ----------
    proxy_PN, gold_PN : (P, N) scores of N responses to each tuning prompt.
    max_n : largest n considered; default N/4, beyond which a few responses decide everything.

    Raises
    ------
    DataError
        Shapes that differ, fewer than 2 responses, or ``max_n`` outside 1 … N.

    Notes
    -----
    HedgeTune (Khalaf et al. 2025): the root of E[g(u) (1/n + log u)] = 0 over the density n u^{n−1}
    of the chosen response's proxy quantile u. Here g is the mean over prompts of gold at each proxy
    rank, constant over ((i−1)/N, i/N], ties averaged; over such a step the density integrates to
    uⁿ and its derivative by n to uⁿ log u, so that nothing is discretised further. Of several
    roots the one with the highest expected gold counts, of equals the smallest.
    `overopt.pools.quantile.hedge_tune` is the same for a world in closed form.
    """
    proxy, gold = (np.asarray(x, dtype=np.float64) for x in (proxy_PN, gold_PN))
    if proxy.ndim != 2 or proxy.shape != gold.shape or proxy.shape[1] < 2:
        raise DataError(
            f"proxy_PN of shape {proxy.shape} and gold_PN of shape {gold.shape}: they must be equal,"
            " with two responses a prompt"
        )
    size = proxy.shape[1]
    top = max(size / 4, 1.0) if max_n is None else float(max_n)
    if not 1 <= top <= size:
        raise DataError(f"max_n = {max_n} is outside 1 … {size}, the size of the pool")
    g = _gold_by_rank(proxy, gold)
    # u^n and u^n log u are 0 at u = 0.
    log_u = np.log(np.arange(1, size + 1) / size)

    def expected(n: float) -> float:
        return float(np.diff(np.exp(n * log_u), prepend=0.0) @ g)

    def slope(n: float) -> float:
        return float(np.diff(np.exp(n * log_u) * log_u, prepend=0.0) @ g)

    grid = np.geomspace(1.0, top, 200)
    slopes = [slope(n) for n in grid]
    peaks = [
        brentq(slope, a, b)
        for a, b, left, right in zip(grid[:-1], grid[1:], slopes[:-1], slopes[1:], strict=True)
        if left > 0 >= right
    ]
    candidates = [1.0, *peaks, top]
    gold_at = np.array([expected(n) for n in candidates])
    # Of equals the smallest, which is the cheapest; equal up to rounding.
    n = candidates[int(np.argmax(gold_at >= gold_at.max() - 1e-12 * np.abs(g).max()))]
    return HedgedN(float(n), n not in (1.0, top))


def _gold_by_rank(proxy_PN: Floats, gold_PN: Floats) -> Floats:
    """Mean over prompts of gold at each proxy rank (N,), ascending; ties share their mean."""
    size = proxy_PN.shape[1]
    rows = []
    for proxy, gold in zip(proxy_PN, gold_PN, strict=True):
        _, block, counts = np.unique(proxy, return_inverse=True, return_counts=True)
        means = np.bincount(block, weights=gold, minlength=len(counts)) / counts
        rows.append(np.repeat(means, counts))
    return np.mean(rows, axis=0).reshape(size)
