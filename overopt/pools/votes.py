"""Votes of responses for their answers, by draws from a pool."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from overopt.base.seeding import numpy_rng
from overopt.pools.table import Floats

DRAWS = 1024
"""Sets of n responses that are drawn for each n and prompt."""


def elected(answers: NDArray[np.int_], votes: Floats, ns: Sequence[int], *, prompt: int) -> Floats:
    """Weights (K, N): one of the pool's responses with the answer that wins is picked at random.

    Of n draws with replacement, the answer with the largest sum of votes wins. Ties are broken at
    random; a response without an answer has no vote. How often an answer wins is estimated from
    `DRAWS` sets, but for n = 1, where that is its share of the pool. Answers with as many responses
    and votes have the same chance, so a majority among answers that are all different adds no KL.

    Parameters
    ----------
    answers : (N,) number of the answer that each response gives; −1 for none.
    votes : (N,) weight of each response, positive.
    ns : (K,) sizes of sets.
    prompt : names the random numbers.
    """
    counted = np.where(answers < 0, 0.0, votes)
    group = np.where(answers < 0, answers.max() + 1, answers)
    size = np.bincount(group)
    found = np.empty((len(ns), len(answers)))
    for k, n in enumerate(ns):
        wins = (
            size / len(answers)
            if n == 1
            else _alike(_wins(group, counted, n, prompt), group, counted)
        )
        found[k] = (wins / np.maximum(size, 1))[group]
    return found


def _alike(wins: Floats, group: NDArray[np.int_], votes: Floats) -> Floats:
    """The same chance for answers that as many responses give with the same votes."""
    votes_of = np.bincount(group, votes).round(12)
    spread_of = np.bincount(group, votes**2).round(12)
    kinds = np.stack([np.bincount(group), votes_of, spread_of])
    _, kind = np.unique(kinds, axis=1, return_inverse=True)
    return (np.bincount(kind, wins) / np.bincount(kind))[kind]


def _wins(group: NDArray[np.int_], votes: Floats, n: int, prompt: int) -> Floats:
    """How often each group (G,) has the largest sum of votes among n draws."""
    rng = numpy_rng(0, "votes", prompt, n)
    drawn = rng.integers(len(group), size=(DRAWS, n))
    sums = np.full((DRAWS, group.max() + 1), -1.0)
    np.put_along_axis(sums, group[drawn], rng.uniform(0, 1e-12, size=drawn.shape), axis=1)
    np.add.at(sums, (np.arange(DRAWS)[:, None], group[drawn]), votes[drawn])
    return np.bincount(sums.argmax(1), minlength=sums.shape[1]) / DRAWS
