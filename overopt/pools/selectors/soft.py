"""Soft best-of-n (Verdun et al. 2025): of n responses one is picked with odds exp(λ · proxy).

With n it goes to the tilt with β = 1/λ and no further, whatever the reward; with λ it goes to
best-of-n.
"""

from collections.abc import Iterator

import numpy as np

from overopt.base.shown import Shown
from overopt.pools.selection import Grid, ScoredPool
from overopt.pools.table import Floats

SHOWN = Shown(label="soft best-of-n", coord="soft_n", axis="n", form="bon", marker="p",
              moves_policy=False)  # fmt: skip
_STEP = 0.25  # of log t; the integrand is analytic and falls off as a Gumbel density does
DRAWS = True


def coordinates(grid: Grid) -> tuple[int, ...]:
    """n."""
    return grid.ns


def weights(pool: ScoredPool, grid: Grid) -> Iterator[Floats]:
    """Probability (K, N) that a response is picked, for each prompt; exact for draws from the pool.

    With odds a = exp(λr), 1/Σa = ∫ exp(−tΣa) dt: the pick of n draws is response i with probability
    n/N ∫ a_i e^{−t a_i} φ(t)^{n−1} dt, where φ(t) is the mean of e^{−ta} over the pool. The integral
    is a trapezoidal sum over log t.
    """
    for r in pool.proxy:
        log_a = grid.strength * (r - r.max())
        log_t = np.arange(-np.log(max(grid.ns)) - 38.0, 6.0 - log_a.min(), _STEP)
        log_ta = np.minimum(log_t + log_a[:, None], 40.0)  # (N, Q); beyond it e^{−ta} is 0
        phi = np.exp(-np.exp(log_ta)).mean(axis=0)
        others = np.stack([n * phi ** (n - 1) for n in grid.ns])  # (K, Q)
        weight = others @ np.exp(log_ta - np.exp(log_ta)).T
        yield weight / weight.sum(axis=1, keepdims=True)
