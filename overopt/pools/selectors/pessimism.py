"""Inference-time pessimism (Huang et al. 2025): χ² in place of KL, so that no response gets much.

The policy that maximises E[proxy] − (β/2)·χ²(π‖π_init) has π/π_init = max(0, (r − λ)/β): linear in
the score where the tilt is exponential, and never above (max r − λ)/β however many are drawn. Huang
et al. sample from it by rejection; here every response's probability is known.
"""

from collections.abc import Iterator

import numpy as np

from overopt.base.shown import Shown
from overopt.pools.selection import BETAS, Grid, ScoredPool
from overopt.pools.table import Floats

SHOWN = Shown(label="pessimism", coord="pessimism_point", axis="point", form="bon", marker="P",
              moves_policy=False)  # fmt: skip
DRAWS = False


def coordinates(grid: Grid) -> tuple[int, ...]:
    """0 for the initial policy, then a number for each β of `BETAS`."""
    return tuple(range(len(BETAS) + 1))


def weights(pool: ScoredPool, grid: Grid) -> Iterator[Floats]:
    """max(0, (r − λ)/β)/N (K, N) for each prompt."""
    for r in pool.proxy:
        start = np.full(len(r), 1 / len(r))
        yield np.stack([start, *(chi2_optimal(r, beta) for beta in BETAS)])


def chi2_optimal(scores: Floats, beta: float) -> Floats:
    """max(0, (r − λ)/β)/N for scores (N,), with λ such that they add up to 1.

    If the m best are above λ, then λ = (Σ of the m best − βN)/m; m is the one that agrees with it.
    """
    ordered = np.sort(scores)[::-1]
    m = np.arange(1, len(scores) + 1)
    cut = (ordered.cumsum() - beta * len(scores)) / m
    lowest = cut[np.flatnonzero(ordered > cut)[-1]]
    weight = np.maximum(scores - lowest, 0.0) / (beta * len(scores))
    return weight / weight.sum()
