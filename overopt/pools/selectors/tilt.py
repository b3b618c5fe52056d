"""The exponential tilt π ∝ π_init·exp(proxy/β): the highest proxy score at each KL."""

from collections.abc import Iterator

import numpy as np

from overopt.base.shown import Shown
from overopt.pools.selection import BETAS, Grid, ScoredPool
from overopt.pools.table import Floats

SHOWN = Shown(
    label="tilt", coord="tilt_point", axis="point", form="bon", marker="x", moves_policy=False
)
DRAWS = False


def coordinates(grid: Grid) -> tuple[int, ...]:
    """0 for the initial policy, then a number for each β of `BETAS`."""
    return tuple(range(len(BETAS) + 1))


def weights(pool: ScoredPool, grid: Grid) -> Iterator[Floats]:
    """exp(r/β), normalised, (K, N) for each prompt."""
    strength = np.array([0.0, *(1 / b for b in BETAS)])[:, None]
    for r in pool.proxy:
        weight = np.exp(strength * (r - r.max()))
        yield weight / weight.sum(axis=1, keepdims=True)
