"""Hedged n against the n that gold itself would choose: how much calibration is worth."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from overopt.analysis.regret import halves, oracle
from overopt.base.errors import DataError
from overopt.pools.best_of_n import best_of_n
from overopt.pools.hedge import hedge_n


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
