"""Hedged best-of-n (Khalaf et al. 2025): best-of-n that stops where gold of other prompts turns.

With a budget of n samples it draws the number, n at most, that is best on the other half of the
prompts, on which gold is known. The curve follows best-of-n to its peak and stays there.
"""

from collections.abc import Iterator

from overopt.base.shown import Shown
from overopt.pools.hedge import hedge_n
from overopt.pools.selection import Grid, ScoredPool, best_of
from overopt.pools.table import Floats

SHOWN = Shown(label="hedged best-of-n", coord="hedged_n", axis="largest n", form="bon", marker="8",
              moves_policy=False)  # fmt: skip
DRAWS = True


def coordinates(grid: Grid) -> tuple[int, ...]:
    """The budget."""
    return grid.ns


def weights(pool: ScoredPool, grid: Grid) -> Iterator[Floats]:
    """Of best-of-n at the hedged n of each budget, (K, N) for each prompt."""
    halves = [(pool.proxy[half::2], pool.gold[half::2]) for half in (0, 1)]
    chosen = [
        [1.0 if n == 1 else hedge_n(*others, max_n=n).n for n in grid.ns] for others in halves[::-1]
    ]
    for prompt, r in enumerate(pool.proxy):
        yield best_of(r, chosen[prompt % 2])
