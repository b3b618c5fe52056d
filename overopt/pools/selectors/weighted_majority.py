"""Weighted majority vote (Li et al. 2023): the answer whose responses have the largest sum of scores.

A response's vote is σ(proxy), its score in standard deviations through a logistic function, which is
positive and counts a response that the proxy rejects for little.
"""

from collections.abc import Iterator

from scipy.special import expit

from overopt.base.shown import Shown
from overopt.pools.selection import Grid, ScoredPool
from overopt.pools.table import Floats
from overopt.pools.votes import elected

SHOWN = Shown(label="weighted majority", coord="weighted_majority_n", axis="n", form="bon",
              marker="<", moves_policy=False)  # fmt: skip
DRAWS = True
READS_ANSWERS = True


def coordinates(grid: Grid) -> tuple[int, ...]:
    """n."""
    return grid.ns


def weights(pool: ScoredPool, grid: Grid) -> Iterator[Floats]:
    """Probability (K, N) that a response is picked, for each prompt."""
    assert pool.answers is not None
    for prompt, (given, scores) in enumerate(zip(pool.answers, pool.proxy, strict=True)):
        yield elected(given, expit(scores), grid.ns, prompt=prompt)
