"""Majority vote (Wang et al. 2023, self-consistency): the answer that most of n responses give.

It reads no reward, so it is what a reward model has to beat where answers can be compared.
"""

from collections.abc import Iterator

import numpy as np

from overopt.base.shown import Shown
from overopt.pools.selection import Grid, ScoredPool
from overopt.pools.table import Floats
from overopt.pools.votes import elected

SHOWN = Shown(label="majority vote", coord="majority_n", axis="n", form="bon", marker=">",
              moves_policy=False)  # fmt: skip
DRAWS = True
READS_ANSWERS = True


def coordinates(grid: Grid) -> tuple[int, ...]:
    """n."""
    return grid.ns


def weights(pool: ScoredPool, grid: Grid) -> Iterator[Floats]:
    """Probability (K, N) that a response is picked, for each prompt."""
    assert pool.answers is not None
    for prompt, given in enumerate(pool.answers):
        yield elected(given, np.ones(len(given)), grid.ns, prompt=prompt)
