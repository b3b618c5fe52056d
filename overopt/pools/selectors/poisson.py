"""Best-of-Poisson (Khalaf et al. 2025): the best of a random number of draws, 1 + Poisson(n − 1)."""

from collections.abc import Iterator

import numpy as np

from overopt.base.shown import Shown
from overopt.pools.selection import Grid, ScoredPool, by_quantile
from overopt.pools.table import Floats

SHOWN = Shown(label="best-of-Poisson", coord="poisson_n", axis="mean n", form="bon", marker="h",
              moves_policy=False)  # fmt: skip
DRAWS = True


def coordinates(grid: Grid) -> tuple[int, ...]:
    """The mean number of draws."""
    return grid.ns


def weights(pool: ScoredPool, grid: Grid) -> Iterator[Floats]:
    """(K, N) for each prompt: the best has a quantile of at most u with probability u·e^{μ(u−1)}."""
    mu = np.array(grid.ns, dtype=float)[:, None] - 1
    for r in pool.proxy:
        yield by_quantile(r, lambda u: u * np.exp(mu * (u - 1)))
