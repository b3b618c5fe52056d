"""Hedged n: the n at which to stop best-of-n, chosen on some prompts and scored on others."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from overopt.analysis.regret import halves, oracle
from overopt.base.errors import DataError
from overopt.fits.forms import Array
from overopt.pools.best_of_n import best_of_n


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


def _gold_by_rank(proxy_PN: Array, gold_PN: Array) -> Array:
    """Mean over prompts of gold at each proxy rank (N,), ascending; ties share their mean."""
    size = proxy_PN.shape[1]
    rows = []
    for proxy, gold in zip(proxy_PN, gold_PN, strict=True):
        _, block, counts = np.unique(proxy, return_inverse=True, return_counts=True)
        means = np.bincount(block, weights=gold, minlength=len(counts)) / counts
        rows.append(np.repeat(means, counts))
    return np.mean(rows, axis=0).reshape(size)


class HedgeScore(NamedTuple):
    """Best-of-n at an n chosen on other prompts, against the oracle's n; gold in sd of gold."""

    chosen_n: tuple[int, int]
    """n for the even and the odd prompts, each chosen on the other half."""
    gold: float
    """Mean gold at the chosen n."""
    gold_stderr: float
    """Its standard error over prompts."""
    regret: float
    """Gold at the oracle's n minus at the chosen, the oracle's n being that of the prompts
    themselves: optimistic, so the regret is too large rather than too small, and never negative."""
    regret_stderr: float
    """Standard error over prompts of the paired difference; the oracle's n is held fixed."""
    regret_of_largest: float
    """The same for always taking ``max_n``."""


def score_hedge(proxy_PN: ArrayLike, gold_PN: ArrayLike, *, max_n: int | None = None) -> HedgeScore:
    """Gold and regret of `hedge_n` with two halves of the prompts, each tuned on the other.

    Parameters
    ----------
    proxy_PN, gold_PN : (P, N) scores, at least 4 prompts.
    max_n : largest n considered; default N // 4.

    Raises
    ------
    DataError
        Fewer than 4 prompts, or what `hedge_n` refuses.
    """
    proxy, gold = (np.asarray(x, dtype=np.float64) for x in (proxy_PN, gold_PN))
    if proxy.ndim != 2 or len(proxy) < 4:
        raise DataError(f"proxy_PN of shape {proxy.shape}: two halves need at least 4 prompts")
    top = max(proxy.shape[1] // 4, 1) if max_n is None else int(max_n)
    ns = np.unique(np.geomspace(1, top, 60).round().astype(int))
    parts = halves(len(proxy))
    chosen, lost, at_chosen, of_largest = [], np.empty(len(proxy)), np.empty(len(proxy)), []
    for mine, other in zip(parts, parts[::-1], strict=True):
        n = int(np.clip(round(hedge_n(proxy[other], gold[other], max_n=top).n), 1, top))
        tried = np.union1d(ns, n)
        curve = best_of_n(proxy[mine], gold[mine], tried).per_prompt
        best = curve[oracle(curve)]
        at_chosen[mine] = curve[int(np.searchsorted(tried, n))]
        lost[mine] = best - at_chosen[mine]
        of_largest.append((best - curve[-1]).mean() * mine.mean())
        chosen.append(n)
    root = len(proxy) ** 0.5
    return HedgeScore(
        chosen_n=(chosen[0], chosen[1]),
        gold=float(at_chosen.mean()),
        gold_stderr=float(at_chosen.std(ddof=1) / root),
        regret=float(lost.mean()),
        regret_stderr=float(lost.std(ddof=1) / root),
        regret_of_largest=float(sum(of_largest)),
    )
