"""Best-of-tails (after Hsu et al. 2026): as bold as the tail of a prompt's scores is light.

The policy maximises E[proxy] − β·D, D the Tsallis divergence of order q from the initial policy:
q = 1 is KL and gives the tilt, q = 2 is χ²/2 and gives pessimism. Each prompt has its own q, read off
its scores by the Hill estimator: a light tail is trusted, a heavy one is not. How a tail becomes an
order is set here, as simply as can be: q = 1 + κ, κ cut at 1, of the upper tenth of the scores above
their median.
"""

from collections.abc import Iterator

import numpy as np
from scipy.optimize import brentq

from overopt.base.shown import Shown
from overopt.pools.selection import BETAS, Grid, ScoredPool
from overopt.pools.selectors.pessimism import chi2_optimal
from overopt.pools.table import Floats

SHOWN = Shown(label="best-of-tails", coord="tails_point", axis="point", form="bon", marker="d",
              moves_policy=False)  # fmt: skip
TAIL_SHARE = 0.1
DRAWS = False


def coordinates(grid: Grid) -> tuple[int, ...]:
    """0 for the initial policy, then a number for each β of `BETAS`."""
    return tuple(range(len(BETAS) + 1))


def weights(pool: ScoredPool, grid: Grid) -> Iterator[Floats]:
    """Of the optimum at the order of each prompt, (K, N)."""
    for r in pool.proxy:
        order = 1 + min(hill(r), 1.0)
        start = np.full(len(r), 1 / len(r))
        yield np.stack([start, *(tsallis_optimal(r, beta, order) for beta in BETAS)])


def hill(scores: Floats) -> float:
    """Tail index κ of the upper tail above the median (Hill 1975); 0 for a tail of equal scores.

    The mean of log x_i − log x_(k+1) over the k largest: about 1/a for a tail like x^{−a}.
    """
    above = np.sort(scores - np.median(scores))[::-1]
    k = max(int(TAIL_SHARE * len(scores)), 1)
    if k >= len(above) or above[k] <= 0:
        return 0.0
    return float(np.mean(np.log(above[:k] / above[k])))


def tsallis_optimal(scores: Floats, beta: float, order: float) -> Floats:
    """Weights w (N,) that maximise Σ w r − β·D, D = (mean of (Nw)^q − 1)/(q(q−1)), q in [1, 2].

    N w = max(0, 1 + (q−1)(r − λ)/β)^{1/(q−1)}, with λ such that w adds up to 1; q = 1: ∝ exp(r/β).
    """
    power = order - 1
    z = (scores - scores.max()) / beta
    if power < 1e-6:
        weight = np.exp(z)
        return weight / weight.sum()
    if power == 1:
        return chi2_optimal(scores, beta)

    def ratios(shift: float) -> Floats:
        return np.maximum(1 + power * (z + shift), 0.0) ** (1 / power)

    # At shift 0 no ratio is above 1; at the upper end the best alone has a ratio of N.
    top = (float(len(z)) ** power - 1) / power
    shift = brentq(lambda x: ratios(x).mean() - 1, 0.0, top, xtol=1e-12)
    weight = ratios(shift)
    return weight / weight.sum()
